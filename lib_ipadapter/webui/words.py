"""Refusals in the words of the page: the labels that people see in the place of the API's field names. Pure."""

from __future__ import annotations

from collections.abc import Mapping

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


def reworded(error: IPAdapterError) -> IPAdapterError:
    """The same error with ``worded``'s message."""
    error.args = (worded(error),)
    error.detail["message"] = str(error)
    return error
