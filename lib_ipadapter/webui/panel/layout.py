"""Which fields of a unit stand where in the panel. Pure: no gradio and no ``modules``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...unit import FIELDS
from .values import panel_default

SPECS = {field.name: field for field in FIELDS}


class Fold(NamedTuple):
    """A group that is folded away: its elem_id's end, its title, and the names of its fields in rows."""

    name: str
    title: str
    rows: Sequence[Sequence[str]]


ROWS = (("weight", "start", "end"), ("weight_type", "fit", "combine", "distribute"), ("composition",))
FOLDS = (
    Fold("where", "Region", (("mask",), ("region",), ("feather", "invert"))),
    Fold(
        "fine",
        "Layers, steps and hires fix",
        (("layers", "curve"), ("interpolation", "scaling", "passes", "hires_factor")),
    ),
    Fold("look", "Crop, mask and negatives", (("position", "sharpen", "noise"), ("negative", "focus"))),
    Fold("follow", "Output and other scripts", (("maps", "in_detailer", "in_upscale", "in_loopback"),)),
)


def folds_of() -> dict[str, Any]:
    """The fields of each fold, with their defaults, for the page to say what differs."""
    return {
        fold.name: [
            {
                "name": name,
                "label": SPECS[name].label,
                "kind": SPECS[name].kind,
                "value": panel_default(SPECS[name], 0),
            }
            for row in fold.rows
            for name in row
        ]
        for fold in FOLDS
    }
