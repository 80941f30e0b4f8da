"""The menu of a unit: what is in it is copied to another unit of the tab, or the two change places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ...unit import FIELDS
from .references import paths_of

_QUIET: dict[str, Any] = {"show_progress": False, "queue": False}
_FILES = tuple(field.name for field in FIELDS if field.kind == "images")


def exchanged(asked: Any, units: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The values by name that each unit gets, None for one that stays. asked: "copy FROM TO" or "swap FROM TO", places
    from 0; anything else leaves all as they are."""
    changed: list[dict[str, Any] | None] = [None for _ in units]
    what, *places = str(asked or "").split(" ")
    if what not in ("copy", "swap") or len(places) != 2 or not all(place.isdigit() for place in places):
        return changed
    source, target = map(int, places)
    if source != target and max(source, target) < len(units):
        changed[target] = _given(units[source])
        if what == "swap":
            changed[source] = _given(units[target])
    return changed


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """A component's value as it came in, as it goes out: of files their paths."""
    return {name: (paths_of(value) or None) if name in _FILES else value for name, value in values.items()}


def bind_exchange(root: str, units: Sequence[Any]) -> None:
    """The hidden button that the page's menu clicks, for all units of a tab."""
    names = list(units[0].inputs)
    components = [unit.inputs[name] for unit in units for name in names]

    def exchange(asked: Any, *values: Any) -> list[Any]:
        given = [dict(zip(names, values[i * len(names) :], strict=False)) for i in range(len(units))]
        made = exchanged(asked, given)
        return [gr.update() if one is None else gr.update(value=one[name]) for one in made for name in names]

    asked = gr.Textbox("", visible=False, elem_id=f"{root}_exchanging")
    button = gr.Button("Exchange", visible=False, elem_id=f"{root}_exchange")
    event = button.click(exchange, [asked, *components], components, _js="ipadapterExchanging", **_QUIET)
    for unit in units:
        event = event.then(**unit.showing)
    event.then(None, [], [], _js=f"() => ipadapterDrawn('{root}')")
