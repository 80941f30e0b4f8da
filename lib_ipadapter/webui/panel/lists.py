"""The lists of models, presets and saved references, the same in all units of a tab."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from .html import folds_text, listed_names
from .layout import folds_of
from .values import NO_MODEL, SAVED

_QUIET: dict[str, Any] = {"show_progress": False, "queue": False}


def bind_lists(root: str, units: Sequence[Any], models: Any) -> None:
    """Models, presets and saved references are listed anew for all units of the tab: when a page is loaded, after any
    unit's refresh, save or delete, and when the checkpoint changes. The page clicks the hidden buttons."""
    listed = [unit.inputs["model"] for unit in units]
    listed += [unit.inputs[SAVED] for unit in units] + [unit.preset for unit in units]
    names = gr.HTML("", elem_id=f"{root}_names")

    def choices(checkpoint: bool = False) -> list[Any]:
        if checkpoint:
            models.wait()
        found = [NO_MODEL, *models.by_fit()], units[0].saved_events.names(), units[0].events.preset_names()
        updates = [gr.update(choices=one) for one in found for _ in units]
        return [*updates, listed_names(found[2], found[1])]

    def refresh() -> list[Any]:
        models.refresh()
        return choices()

    gr.HTML(folds_text(folds_of()), elem_id=f"{root}_folds")
    lister = gr.Button("List", visible=False, elem_id=f"{root}_list")
    changed = gr.Button("Checkpoint", visible=False, elem_id=f"{root}_checkpoint")
    events = [lister.click(choices, [], [*listed, names], **_QUIET)]
    # Not queued: Reload UI would wait for ever for a queued event whose page was closed (gradio 3.41).
    events.append(changed.click(partial(choices, True), [], [*listed, names], **_QUIET))
    for unit in units:
        events.append(unit.refresh.click(refresh, [], [*listed, names], **_QUIET))
    for event in events:
        for unit in units:
            event.then(unit.events.describe, [unit.inputs["model"]], unit.described, **_QUIET)
