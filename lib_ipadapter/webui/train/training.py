"""The Train part of the tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..panel.html import failure, note
from .part import QUIET, Part, tried
from .texts import NO_ENCODER, STARTED, STOPPING

ID = "ipadapter_train"
_OURS = ("base", "base_config", "data", "encoder", "face_models", "variant")  # fields that the controls stand for


class TrainingPart(Part):
    """From a folder of pictures to an adapter."""

    @property
    def desk(self) -> Any:
        """Made when it is needed: the trainer's parts cost time at the start of the WebUI."""
        from .desk import Desk

        return Desk(self.models, self.open_to_all)

    def build(self) -> None:
        """The components, in the tab that is open."""
        with gr.Row(elem_id=ID):
            with gr.Column():
                self._inputs()
            with gr.Column():
                self.runs = gr.Dropdown([], label="Trainings", elem_id=f"{ID}_runs")
                self.state = gr.HTML("", elem_id=f"{ID}_state")
        self._bind()

    def _inputs(self) -> None:
        self.name = gr.Textbox("", label="Name of the adapter", max_lines=1, elem_id=f"{ID}_name")
        self.base = gr.Dropdown([], label="Base model", elem_id=f"{ID}_base")
        self.data = gr.Textbox(
            "",
            label="Folder of pictures",
            info="A .txt with the caption beside each",
            max_lines=1,
            elem_id=f"{ID}_data",
        )
        self.looking = gr.Button("Look at the pictures", elem_id=f"{ID}_look")
        self.seen = gr.HTML("", elem_id=f"{ID}_seen")
        with gr.Row():
            self.encoder = gr.Dropdown([], label="Image encoder", elem_id=f"{ID}_encoder")
            self.variant = gr.Dropdown([], label="Variant", elem_id=f"{ID}_variant")
            self.preset = gr.Dropdown([], label="Preset", elem_id=f"{ID}_preset")
        self.text = gr.Textbox("", label="What will run (YAML)", lines=14, max_lines=40, elem_id=f"{ID}_text")
        self.unload = gr.Checkbox(False, label="Unload the WebUI's model first", elem_id=f"{ID}_unload")
        with gr.Row():
            self.starting = gr.Button("Start or go on", variant="primary", elem_id=f"{ID}_start")
            self.stopping = gr.Button("Save and stop", elem_id=f"{ID}_stop")
        self.said = gr.HTML("", elem_id=f"{ID}_said")
        self.listing = gr.Button("List", visible=False, elem_id=f"{ID}_list")
        self.polling = gr.Button("Poll", visible=False, elem_id=f"{ID}_poll")

    def _bind(self) -> None:
        chosen = [self.base, self.data, self.encoder, self.variant]
        shown = [self.runs], [self.state]
        self.listing.click(
            self._list, [self.text], [*chosen[:1], *chosen[2:], self.preset, self.text, self.runs, self.said], **QUIET
        ).then(self._state, *shown, **QUIET)
        self.base.input(self._based, chosen, [self.preset, self.text], **QUIET)
        self.preset.input(self._composed, [self.preset, *chosen], [self.text, self.said], **QUIET)
        self.encoder.input(
            self._encoded, [self.text, *chosen], [self.variant, self.text, self.said], **QUIET
        )  # fmt: skip
        for one in (self.variant.input, self.data.change):
            one(self._changed, [self.text, *chosen], [self.text, self.said], **QUIET)
        self.looking.click(self._look, [self.data, self.text], [self.seen], queue=False)
        self.starting.click(
            self._start, [self.name, self.text, self.unload], [self.runs, self.said], queue=False
        ).then(self._state, *shown, **QUIET)  # fmt: skip
        self.stopping.click(self._stop, [self.runs], [self.said], **QUIET).then(self._state, *shown, **QUIET)
        self.polling.click(self._state, *shown, **QUIET)
        self.runs.input(self._chosen, [self.runs], [self.state, self.name, self.text], **QUIET)

    # what the controls do

    def _list(self, text: str) -> list[Any]:
        from ...training.runs.recipe import BY_TITLE

        desk = self.desk
        bases, encoders = list(desk.checkpoints()), list(desk.encoders())
        base, encoder = (names[0] if names else None for names in (bases, encoders))
        variants = desk.variants(encoder or "")
        preset = desk.preset(base or "").title
        variant = variants[0] if variants else None
        said = "" if encoder else failure(NO_ENCODER)
        made, wrong = tried(lambda: text or desk.composed(preset, base or "", "", encoder or "", variant or ""))
        runs = desk.runs.names()
        return [
            gr.update(choices=bases, value=base), gr.update(choices=encoders, value=encoder),
            gr.update(choices=variants, value=variant), gr.update(choices=list(BY_TITLE), value=preset),
            made or "", gr.update(choices=runs, value=runs[0] if runs else None), said + wrong,
        ]  # fmt: skip

    def _based(self, base: str, data: str, encoder: str, variant: str) -> list[Any]:
        preset = self.desk.preset(base).title
        text, _ = tried(lambda: self.desk.composed(preset, base, data, encoder, variant))
        return [gr.update(value=preset), text or ""]

    def _composed(self, preset: str, *chosen: str) -> list[Any]:
        text, wrong = tried(lambda: self.desk.composed(preset, *chosen))
        return [gr.update() if text is None else text, wrong]

    def _encoded(self, text: str, base: str, data: str, encoder: str, variant: str) -> list[Any]:
        variants = self.desk.variants(encoder)
        kept = variant if variant in variants else (variants[0] if variants else None)
        return [gr.update(choices=variants, value=kept), *self._changed(text, base, data, encoder, kept or "")]

    def _changed(self, text: str, *chosen: str) -> list[Any]:
        from ...runs.yaml_text import changed

        made, wrong = tried(lambda: changed(text, self.desk.chosen(*chosen), _OURS))
        # An error of a button that was pressed since stays.
        return [gr.update() if made is None else made, wrong or gr.update()]

    def _look(self, data: str, text: str) -> str:
        from ...runs.yaml_text import fields_of
        from .look import look_html

        def looked() -> str:
            fields = fields_of(text)
            sizes = [fields.get(name) or default for name, default in (("resolution", 512), ("bucket_step", 64))]
            return look_html(self.desk.look(data, *sizes))

        shown, wrong = tried(looked)
        return (shown or "") + wrong

    def _start(self, name: str, text: str, unload: bool) -> list[Any]:
        state, wrong = tried(lambda: self.desk.start(str(name).strip(), text, bool(unload)))
        if state is None:
            return [gr.update(), wrong]
        return [gr.update(choices=self.desk.runs.names(), value=state.name), note(STARTED)]

    def _stop(self, name: str) -> str:
        state, wrong = tried(lambda: self.desk.stop(name or ""))
        return wrong or (note(STOPPING) if state.alive else "")

    def _chosen(self, name: str) -> list[Any]:
        """Its name and text as well, to go on with it."""
        text, _ = tried(lambda: self.desk.runs.run(name).text())
        return [self._state(name), name or gr.update(), gr.update() if text is None else text]

    def _state(self, name: str) -> str:
        from .show import state_html

        if not name:
            return ""

        def shown() -> str:
            state = self.desk.state(name)
            folder = self.desk.runs.run(name).root / "samples"
            return state_html(state, self.desk.curves(name), [folder / sample for sample in state.samples])

        html, wrong = tried(shown)
        return (html or "") + wrong
