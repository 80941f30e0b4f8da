"""The tab of trainings and evaluations. Nothing is read from disk before a part of it is seen:
javascript/ipadapter_train.js clicks its hidden buttons then, and while something runs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..models import Models
from .evaluating import EvaluatingPart
from .training import TrainingPart

TITLE, ID = "IP-Adapter training", "ipadapter_train"


class Tab:
    """The tab of one page."""

    def __init__(self, models: Models) -> None:
        self.training, self.evaluating = TrainingPart(models), EvaluatingPart(models)

    def build(self) -> list[tuple[Any, str, str]]:
        """For ``on_ui_tabs``."""
        with gr.Blocks(analytics_enabled=False) as blocks, gr.Tabs(elem_id=f"{ID}_parts"):
            with gr.TabItem("Train"):
                self.training.build()
            with gr.TabItem("Evaluate"):
                self.evaluating.build()
        return [(blocks, TITLE, ID)]
