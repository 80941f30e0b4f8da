"""Which fields of a unit stand where in the panel. Pure: no gradio and no ``modules``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...unit import FACE, FIELDS, LAYERS, PREPROCESS, REGION, SCRIPTS
from .values import panel_default

SPECS = {field.name: field for field in FIELDS}


class Fold(NamedTuple):
    """A group that is folded away: its elem_id's end, its title, and the names of its fields in rows."""

    name: str
    title: str
    rows: Sequence[Sequence[str]]


ROWS = (("weight", "start", "end"), ("weight_type", "fit", "combine", "distribute"), ("composition",))
_BUILT = ("enabled", "images", "model", "box", "focus")  # by themselves
_LISTED: dict[str, Sequence[Sequence[str]]] = {
    "who": (
        ("face", "kind"),
        ("lora", "shortcut"),
        ("pulid", "pulid_mode", "zero_tokens"),
        ("pose",),
        ("pose_from", "pose_face", "control_model"),
        ("pose_weight", "pose_start", "pose_end"),
    ),
    "where": (("mask",), ("region", "feather", "invert"), ("region_face", "grow")),
    "fine": (("layers", "curve"), ("interpolation", "scaling", "passes", "hires_factor")),
    "look": (("position", "sharpen", "noise"), ("negative",)),
    "follow": (("maps", "in_detailer", "in_upscale", "in_loopback"),),
}
_TITLES = {"who": FACE, "where": REGION, "fine": LAYERS, "look": PREPROCESS, "follow": SCRIPTS}


def _unlisted(group: str) -> Sequence[Sequence[str]]:
    """Fields of a group that stand nowhere else, a row each; those without a group go into the last fold."""
    listed = {*_BUILT, *(name for rows in (ROWS, *_LISTED.values()) for row in rows for name in row)}
    groups = (group, "") if group == SCRIPTS else (group,)
    return [(field.name,) for field in FIELDS if field.group in groups and field.name not in listed]


FOLDS = tuple(Fold(name, _TITLES[name], (*rows, *_unlisted(_TITLES[name]))) for name, rows in _LISTED.items())


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
