"""What the parts of the tab have in common: a run by its name and its YAML, started, followed and stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ...errors import IPAdapterError
from ...runs.yaml_text import changed, fields_of
from ..api import access
from ..models import Models
from ..panel.html import failure, note
from ..words import worded
from .texts import STARTED

QUIET: dict[str, Any] = {"show_progress": False, "queue": False}


class Part(ABC):
    """One part of the tab, on one page. id: in front of its components' elem_ids; pictures: the field of the YAML that
    the folder of pictures stands for."""

    id: str
    runs_label: str
    name_label: str
    stop_label: str
    data: Any
    pictures: str

    def __init__(self, models: Models) -> None:
        self.models = models

    def tried(self, work: Callable[[], Any]) -> tuple[Any, str]:
        """What ``work`` gives, or None and what is wrong as HTML, in the words of the page."""
        try:
            return work(), ""
        except IPAdapterError as error:
            components = {"config": self.text, "data": self.data, **self.fields()}
            labels = {field: str(component.label) for field, component in components.items()}
            return None, failure(worded(error, {"name": self.name_label, **labels}))

    def open_to_all(self) -> bool:
        """Whether people who are asked for no password open the page over the network."""
        return self.models.host.serves_others() and access.asks_nobody(api=False)

    @property
    @abstractmethod
    def work(self) -> Any:
        """The desk or the bench, made when it is needed: their parts cost time at the start of the WebUI."""

    @abstractmethod
    def controls(self) -> None:
        """The components between the name and the YAML: ``base``, ``data`` and its own."""

    @abstractmethod
    def bind(self) -> None:
        """What its own components do."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Its own components by the fields whose refusals are to name them."""

    @abstractmethod
    def html(self, name: str) -> str:
        """A run's state. Raises IPAdapterError."""

    @abstractmethod
    def listed(self, text: str) -> list[Any]:
        """The lists, when the part is first seen."""

    def build(self) -> None:
        """The components, in the tab that is open."""
        with gr.Row(elem_id=self.id):
            with gr.Column():
                self._inputs()
            with gr.Column():
                self.runs = gr.Dropdown([], label=self.runs_label, elem_id=f"{self.id}_runs")
                self.state = gr.HTML("", elem_id=f"{self.id}_state")
        self.bind()
        self.shown = [self.runs], [self.state]
        self.starting.click(
            self._start, [self.name, self.text, self.unload], [self.runs, self.said], queue=False
        ).then(self._state, *self.shown, **QUIET)  # fmt: skip
        self.stopping.click(self.stopped, [self.runs], [self.said], **QUIET).then(self._state, *self.shown, **QUIET)
        self.polling.click(self._state, *self.shown, **QUIET)
        self.runs.input(self._chosen, [self.runs], [self.state, self.name, self.text, self.data], **QUIET)

    def _inputs(self) -> None:
        self.name = gr.Textbox("", label=self.name_label, max_lines=1, elem_id=f"{self.id}_name")
        self.base = gr.Dropdown([], label="Base model", elem_id=f"{self.id}_base")
        self.controls()
        self.text = gr.Textbox("", label="What will run (YAML)", lines=12, max_lines=40, elem_id=f"{self.id}_text")
        self.unload = gr.Checkbox(False, label="Unload the WebUI's model first", elem_id=f"{self.id}_unload")
        with gr.Row():
            self.starting = gr.Button("Start or go on", variant="primary", elem_id=f"{self.id}_start")
            self.stopping = gr.Button(self.stop_label, elem_id=f"{self.id}_stop")
        self.said = gr.HTML("", elem_id=f"{self.id}_said")
        self.listing = gr.Button("List", visible=False, elem_id=f"{self.id}_list")
        self.polling = gr.Button("Poll", visible=False, elem_id=f"{self.id}_poll")

    def folder(self) -> gr.Textbox:
        """The folder of pictures."""
        return gr.Textbox(
            "",
            label="Folder of pictures",
            info="A .txt with the caption beside each",
            max_lines=1,
            elem_id=f"{self.id}_data",
        )

    def bind_lists(self, outputs: Sequence[Any]) -> None:
        """outputs: of ``listed``."""
        self.listing.click(self.listed, [self.text], list(outputs), **QUIET).then(
            self._opened, [self.runs], [self.state, self.name, self.text, self.data], **QUIET
        )

    def writing(self, *names: str) -> Callable[..., list[Any]]:
        """``changed`` for a control that stands for these fields: those of the others may show what is not in the
        text, which may be that of an earlier run or people's own."""
        return lambda text, *chosen: self.changed(names, text, *chosen)

    def changed(self, names: Sequence[str], text: str, *chosen: Any) -> list[Any]:
        """The YAML with what was chosen of these fields, and what is wrong."""
        made, wrong = self.tried(lambda: changed(text, self.work.chosen(*chosen), names))
        # An error of a button that was pressed since stays.
        return [gr.update() if made is None else made, wrong or gr.update()]

    def stopped(self, name: str) -> str:
        """Stops a run; what is wrong."""
        return self.tried(lambda: self.work.stop(name or ""))[1]

    def _start(self, name: str, text: str, unload: bool) -> list[Any]:
        state, wrong = self.tried(lambda: self.work.start(str(name or "").strip(), text, bool(unload)))
        if state is None:
            return [gr.update(), wrong]
        return [gr.update(choices=self.work.runs.names(), value=state.name), note(STARTED)]

    def _chosen(self, name: str) -> list[Any]:
        """Its name, text and folder of pictures as well, to go on with it."""
        text, _ = self.tried(lambda: self.work.runs.run(name).text())
        fields, _ = self.tried(lambda: fields_of(text or ""))
        folder = (fields or {}).get(self.pictures)
        return [
            self._state(name), name or gr.update(), gr.update() if text is None else text,
            folder if isinstance(folder, str) else gr.update(),
        ]  # fmt: skip

    def _opened(self, name: str) -> list[Any]:
        """What a fresh page shows of the newest run: unless it is done, its name and text as well. They are taken for
        what runs, and are needed to go on: the list gives no event where its chosen one is chosen again."""
        unfinished, _ = self.tried(lambda: bool(name) and self.work.state(name).phase != "done")
        return self._chosen(name) if unfinished else [self._state(name), *[gr.update()] * 3]

    def _state(self, name: str) -> str:
        html, wrong = self.tried(lambda: self.html(name)) if name else ("", "")
        return (html or "") + wrong
