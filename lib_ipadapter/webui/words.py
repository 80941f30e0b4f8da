"""Refusals in the words of the page: the labels that people see in the place of the API's field names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import IPAdapterError
from ..unit.unit import FIELDS

LABELS = {**{field.name: field.label for field in FIELDS if field.label}, "preset": "Preset", "embeds": "Embeds"}


def worded(error: Exception, labels: Mapping[str, str] = LABELS) -> str:
    """The message, with its field's label where a component of the page has one."""
    field = str(error.detail.get("field", "")) if isinstance(error, IPAdapterError) else ""
    text = str(error)
    before, found, after = text.partition(f"{field}: ")
    if not found or field not in labels or (before and not before.endswith(": ")):
        return text
    return f"{before}{labels[field]}: {after}"


def reworded(error: IPAdapterError, args: Sequence[Any]) -> IPAdapterError:
    """The same error in the panel's words where a script's arguments come from the panel, whose first is its flag, and
    not from a request, which names fields itself."""
    if args and isinstance(args[0], bool) and not isinstance((*args, None)[1], (Mapping, list, tuple)):
        error.args = (worded(error),)
        error.detail["message"] = str(error)
    return error
