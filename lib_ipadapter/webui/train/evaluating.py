"""The Evaluate part of the tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..panel.html import NONE_FITS, failure
from .part import QUIET, Part
from .texts import EVALUATIONS, NAME_OF_EVALUATION, NO_JUDGE, STOP


class EvaluatingPart(Part):
    """Adapters and weights over a folder of pictures."""

    id = "ipadapter_evaluate"
    runs_label, name_label, stop_label = EVALUATIONS, NAME_OF_EVALUATION, STOP
    pictures = "references"

    @property
    def work(self) -> Any:
        """The bench."""
        from .bench import Bench

        return Bench(self.models, self.open_to_all)

    def controls(self) -> None:
        """Adapters, references, weights and the CLIP that measures."""
        self.adapters = gr.Dropdown(
            [],
            value=[],
            label="Adapters",
            info="Those that fit the base model",
            multiselect=True,
            elem_id=f"{self.id}_adapters",
        )
        self.data = self.folder()
        with gr.Row():
            self.weights = gr.Textbox("", label="Weights", max_lines=1, elem_id=f"{self.id}_weights")
            self.judge = gr.Dropdown([], label="CLIP that measures", elem_id=f"{self.id}_judge")

    def fields(self) -> dict[str, Any]:
        """Those that people must fill in."""
        return {"checkpoint": self.base, "adapter": self.adapters, "references": self.data, "clip": self.judge}

    def bind(self) -> None:
        """What its own components do."""
        chosen = [self.base, self.adapters, self.data, self.weights, self.judge]
        self.bind_lists([self.base, self.adapters, self.weights, self.judge, self.text, self.runs, self.said])
        self.base.input(self._based, chosen, [self.adapters, self.text, self.said], **QUIET)
        for one, name in (
            (self.adapters.input, "adapter"), (self.data.change, "references"), (self.weights.input, "weights"),
            (self.judge.input, "clip"),
        ):  # fmt: skip
            one(self.writing(name), [self.text, *chosen], [self.text, self.said], **QUIET)

    # what the controls do

    def listed(self, text: str) -> list[Any]:
        """The lists, when the part is first seen."""
        from .bench import WEIGHTS

        bench = self.work
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
        fitting = self.work.adapters(base)
        kept = [name for name in adapters or [] if name in fitting]
        text = self.work.composed(self.work.chosen(base, kept, *others))
        return [gr.update(choices=fitting, value=kept), text, "" if fitting else failure(NONE_FITS)]

    def html(self, name: str) -> str:
        """An evaluation's state, and what it found."""
        from .measured import evaluation_html

        run = self.work.runs.run(name)
        return evaluation_html(run.state(), run.report(), run.grid)
