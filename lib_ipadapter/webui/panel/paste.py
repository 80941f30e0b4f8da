"""What a pasted infotext means for each component of the panel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from ...errors import IPAdapterError
from ...files.library import SUFFIXES
from ...options import Option
from ..infotext import KEY, named_texts, read, weights_text
from . import html
from .values import NO_MODEL


class Paste:
    """Functions for ``infotext_fields``: what a pasted text means for each component.

    The WebUI calls them with the parsed text, in the page and for the API's ``infotext``. None leaves a
    component as it is.
    """

    def __init__(self, models: Any, count: int) -> None:
        self.models = models
        self.count = count

    def flag(self, params: Mapping[str, Any]) -> bool | None:
        """A text without our key was made without us; a broken value is ignored."""
        return False if KEY not in params else True if read(params[KEY]).units else None

    def notes(self, params: Mapping[str, Any]) -> str:
        """What of the text could not be used, for the top of the panel; clears the last text's notes."""
        pasted = read(params.get(KEY, "[]"))
        notes = [f"The pasted text: {text}." for text in pasted.notes]
        beyond = sum(1 for index in pasted.units if index >= self.count)
        if beyond:
            notes.append(f"The pasted text has {beyond} more units than this panel (see Settings).")
        return html.failure(" ".join(notes)) if notes else ""  # red: without a mask another picture is drawn

    def field(self, field: Option, index: int, component: Any) -> Any:
        """The function for one field of one unit."""

        def value(params: Mapping[str, Any]) -> Any:
            units = read(params.get(KEY, "[]")).units
            if isinstance(component.value, int) and not isinstance(component.value, bool):
                # The API casts to this type, and a default saved as 1 would turn a weight of 0.5 into 0.
                component.value = float(component.value)
            if not units:
                return None
            if field.name == "enabled":
                return index in units
            return None if index not in units else self._value(field, units[index])

        return value

    def _value(self, field: Option, unit: Mapping[str, Any]) -> Any:
        value = unit.get(field.name, field.default)
        return self._listed(value) if field.name == "model" else value

    def _listed(self, model: str) -> str:
        """The name as the dropdown has it; one that is not there is kept, and generating says so."""
        if not model:
            return NO_MODEL
        try:
            names = self.models.model_names()
        except (IPAdapterError, OSError):
            return model
        return model if model in names else next((n for n in names if _stem(n) == _stem(model)), model)

    def weights(self, index: int) -> Any:
        """The function for the weights' text of one unit."""

        def value(params: Mapping[str, Any]) -> str | None:
            unit = read(params.get(KEY, "[]")).units.get(index)
            return None if unit is None else weights_text(unit["images"])

        return value

    def saved(self, index: int, component: Any) -> Any:
        """The function for the saved references of one unit; those that are gone are kept, and generating says so."""

        def value(params: Mapping[str, Any]) -> Any:
            unit = read(params.get(KEY, "[]")).units.get(index)
            return None if unit is None else gr.update(value=named_texts(unit["images"]))

        return value

    def wanted(self, index: int) -> Any:
        """The function for the hidden list of hashes of one unit's pictures, JSON; "" without any."""

        def value(params: Mapping[str, Any]) -> str:
            unit = read(params.get(KEY, "[]")).units.get(index)
            return "" if unit is None else json.dumps([image["hash"] for image in unit["images"] if "hash" in image])

        return value


def _stem(name: str) -> str:
    lower = name.lower()
    return next((lower[: -len(suffix)] for suffix in SUFFIXES if lower.endswith(suffix)), lower)
