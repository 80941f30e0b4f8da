"""The Train part of the tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..panel.html import failure, note
from .part import QUIET, Part
from .texts import NAME_OF_ADAPTER, NO_ENCODER, SAVE_AND_STOP, STOPPING, TRAININGS

_ENCODED = ("encoder", "face_models", "variant")  # what encoder and variant stand for


class TrainingPart(Part):
    """From a folder of pictures to an adapter."""

    id = "ipadapter_train"
    runs_label, name_label, stop_label = TRAININGS, NAME_OF_ADAPTER, SAVE_AND_STOP
    pictures = "data"

    @property
    def work(self) -> Any:
        """The desk."""
        from .desk import Desk

        return Desk(self.models, self.open_to_all)

    def controls(self) -> None:
        """Data with a first look, encoder, variant and preset."""
        self.data = self.folder()
        self.looking = gr.Button("Look at the pictures", elem_id=f"{self.id}_look")
        self.seen = gr.HTML("", elem_id=f"{self.id}_seen")
        with gr.Row():
            self.encoder = gr.Dropdown([], label="Image encoder", elem_id=f"{self.id}_encoder")
            self.variant = gr.Dropdown([], label="Variant", elem_id=f"{self.id}_variant")
            self.preset = gr.Dropdown([], label="Preset", elem_id=f"{self.id}_preset")

    def fields(self) -> dict[str, Any]:
        """Those that people must fill in."""
        return {"base": self.base, "encoder": self.encoder}

    def bind(self) -> None:
        """What its own components do."""
        chosen = [self.base, self.data, self.encoder, self.variant]
        self.bind_lists([self.base, self.encoder, self.variant, self.preset, self.text, self.runs, self.said])
        self.base.input(self._based, chosen, [self.preset, self.text], **QUIET)
        self.preset.input(self._composed, [self.preset, *chosen], [self.text, self.said], **QUIET)
        self.encoder.input(self._encoded, [self.text, *chosen], [self.variant, self.text, self.said], **QUIET)
        for one, names in ((self.variant.input, _ENCODED), (self.data.change, ("data",))):
            one(self.writing(*names), [self.text, *chosen], [self.text, self.said], **QUIET)
        self.looking.click(self._look, [self.data, self.text], [self.seen], queue=False)

    # what the controls do

    def listed(self, text: str) -> list[Any]:
        """The lists, when the part is first seen."""
        from ...training.runs.recipe import BY_TITLE

        desk = self.work
        bases, encoders = list(desk.checkpoints()), list(desk.encoders())
        base, encoder = (names[0] if names else None for names in (bases, encoders))
        variants = desk.variants(encoder or "")
        preset = desk.preset(base or "").title
        variant = variants[0] if variants else None
        said = "" if encoder else failure(NO_ENCODER)
        made, wrong = self.tried(lambda: text or desk.composed(preset, base or "", "", encoder or "", variant or ""))
        runs = desk.runs.names()
        return [
            gr.update(choices=bases, value=base), gr.update(choices=encoders, value=encoder),
            gr.update(choices=variants, value=variant), gr.update(choices=list(BY_TITLE), value=preset),
            made or "", gr.update(choices=runs, value=runs[0] if runs else None), said + wrong,
        ]  # fmt: skip

    def _based(self, base: str, data: str, encoder: str, variant: str) -> list[Any]:
        preset = self.work.preset(base).title
        text, _ = self.tried(lambda: self.work.composed(preset, base, data, encoder, variant))
        return [gr.update(value=preset), text or ""]

    def _composed(self, preset: str, *chosen: str) -> list[Any]:
        text, wrong = self.tried(lambda: self.work.composed(preset, *chosen))
        return [gr.update() if text is None else text, wrong]

    def _encoded(self, text: str, base: str, data: str, encoder: str, variant: str) -> list[Any]:
        variants = self.work.variants(encoder)
        kept = variant if variant in variants else (variants[0] if variants else None)
        return [gr.update(choices=variants, value=kept), *self.changed(_ENCODED, text, base, data, encoder, kept or "")]

    def _look(self, data: str, text: str) -> str:
        from ...runs.yaml_text import fields_of
        from .look import look_html

        def looked() -> str:
            fields = fields_of(text)
            sizes = [fields.get(name) or default for name, default in (("resolution", 512), ("bucket_step", 64))]
            return look_html(self.work.look(data, *sizes))

        shown, wrong = self.tried(looked)
        return (shown or "") + wrong

    def stopped(self, name: str) -> str:
        """Asks a training to save and to end; what is said."""
        state, wrong = self.tried(lambda: self.work.stop(name or ""))
        return wrong or (note(STOPPING) if state.alive else "")

    def html(self, name: str) -> str:
        """A training's state, curves and samples."""
        from .show import state_html

        state = self.work.state(name)
        folder = self.work.runs.run(name).root / "samples"
        return state_html(state, self.work.curves(name), [folder / sample for sample in state.samples])
