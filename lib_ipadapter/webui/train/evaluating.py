"""The Evaluate part of the tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..panel.html import NONE_FITS, failure, note
from .part import QUIET, Part, tried
from .texts import NO_JUDGE, STARTED

ID = "ipadapter_evaluate"
_OURS = ("checkpoint", "adapter", "references", "weights", "clip")  # fields that the controls stand for


class EvaluatingPart(Part):
    """Adapters and weights over a folder of pictures."""

    @property
    def bench(self) -> Any:
        """Made when it is needed."""
        from .bench import Bench

        return Bench(self.models, self.open_to_all)

    def build(self) -> None:
        """The components, in the tab that is open."""
        with gr.Row(elem_id=ID):
            with gr.Column():
                self._inputs()
            with gr.Column():
                self.runs = gr.Dropdown([], label="Evaluations", elem_id=f"{ID}_runs")
                self.state = gr.HTML("", elem_id=f"{ID}_state")
        self._bind()

    def _inputs(self) -> None:
        self.name = gr.Textbox("", label="Name of the evaluation", max_lines=1, elem_id=f"{ID}_name")
        self.base = gr.Dropdown([], label="Base model", elem_id=f"{ID}_base")
        self.adapters = gr.Dropdown(
            [],
            value=[],
            label="Adapters",
            info="Those that fit the base model",
            multiselect=True,
            elem_id=f"{ID}_adapters",
        )
        self.data = gr.Textbox(
            "",
            label="Folder of pictures",
            info="A .txt with the caption beside each",
            max_lines=1,
            elem_id=f"{ID}_data",
        )
        with gr.Row():
            self.weights = gr.Textbox("", label="Weights", max_lines=1, elem_id=f"{ID}_weights")
            self.judge = gr.Dropdown([], label="CLIP that measures", elem_id=f"{ID}_judge")
        self.text = gr.Textbox("", label="What will run (YAML)", lines=12, max_lines=40, elem_id=f"{ID}_text")
        self.unload = gr.Checkbox(False, label="Unload the WebUI's model first", elem_id=f"{ID}_unload")
        with gr.Row():
            self.starting = gr.Button("Start or go on", variant="primary", elem_id=f"{ID}_start")
            self.stopping = gr.Button("Stop", elem_id=f"{ID}_stop")
        self.said = gr.HTML("", elem_id=f"{ID}_said")
        self.listing = gr.Button("List", visible=False, elem_id=f"{ID}_list")
        self.polling = gr.Button("Poll", visible=False, elem_id=f"{ID}_poll")

    def _bind(self) -> None:
        chosen = [self.base, self.adapters, self.data, self.weights, self.judge]
        shown = [self.runs], [self.state]
        self.listing.click(
            self._list, [self.text],
            [self.base, self.adapters, self.weights, self.judge, self.text, self.runs, self.said], **QUIET,
        ).then(self._state, *shown, **QUIET)  # fmt: skip
        self.base.input(self._based, chosen, [self.adapters, self.text, self.said], **QUIET)
        for one in (self.adapters.input, self.data.change, self.weights.input, self.judge.input):
            one(self._changed, [self.text, *chosen], [self.text, self.said], **QUIET)
        self.starting.click(
            self._start, [self.name, self.text, self.unload], [self.runs, self.said], queue=False
        ).then(self._state, *shown, **QUIET)  # fmt: skip
        self.stopping.click(self._stop, [self.runs], [self.said], **QUIET).then(self._state, *shown, **QUIET)
        self.polling.click(self._state, *shown, **QUIET)
        self.runs.input(self._chosen, [self.runs], [self.state, self.name, self.text], **QUIET)

    # what the controls do

    def _list(self, text: str) -> list[Any]:
        from .bench import WEIGHTS

        bench = self.bench
        bases, judges = list(bench.checkpoints()), list(bench.judges())
        base, judge = (names[0] if names else None for names in (bases, judges))
        adapters = bench.adapters(base or "")
        wrong = ("" if adapters else failure(NONE_FITS)) + ("" if judge else failure(NO_JUDGE))
        text = text or bench.composed(bench.chosen(base or "", [], "", WEIGHTS, judge or ""))
        runs = bench.runs.names()
        return [
            gr.update(choices=bases, value=base), gr.update(choices=adapters, value=[]), WEIGHTS,
            gr.update(choices=judges, value=judge), text,
            gr.update(choices=runs, value=runs[0] if runs else None), wrong,
        ]  # fmt: skip

    def _based(self, base: str, adapters: list[str], *others: str) -> list[Any]:
        fitting = self.bench.adapters(base)
        kept = [name for name in adapters or [] if name in fitting]
        text = self.bench.composed(self.bench.chosen(base, kept, *others))
        return [gr.update(choices=fitting, value=kept), text, "" if fitting else failure(NONE_FITS)]

    def _changed(self, text: str, *chosen: Any) -> list[Any]:
        from ...runs.yaml_text import changed

        made, wrong = tried(lambda: changed(text, self.bench.chosen(*chosen), _OURS))
        # An error of a button that was pressed since stays.
        return [gr.update() if made is None else made, wrong or gr.update()]

    def _start(self, name: str, text: str, unload: bool) -> list[Any]:
        state, wrong = tried(lambda: self.bench.start(str(name).strip(), text, bool(unload)))
        if state is None:
            return [gr.update(), wrong]
        return [gr.update(choices=self.bench.runs.names(), value=state.name), note(STARTED)]

    def _stop(self, name: str) -> str:
        return tried(lambda: self.bench.stop(name or ""))[1]

    def _chosen(self, name: str) -> list[Any]:
        """Its name and text as well, to go on with it."""
        text, _ = tried(lambda: self.bench.runs.run(name).text())
        return [self._state(name), name or gr.update(), gr.update() if text is None else text]

    def _state(self, name: str) -> str:
        from .measured import evaluation_html

        if not name:
            return ""

        def shown() -> str:
            run = self.bench.runs.run(name)
            return evaluation_html(run.state(), run.report(), run.grid)

        html, wrong = tried(shown)
        return (html or "") + wrong
