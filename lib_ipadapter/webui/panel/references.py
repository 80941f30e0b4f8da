"""What the panel does to a unit's references: added, taken out, moved, found again; and what belongs to each with them.

``files`` are gradio's file objects. Each change is followed by ``UnitEvents.show``. What belongs to the references
(files, weights, saved, box, masks) is kept in step: weights and boxes are texts with a part for each, masks a list.
The model and the saved references are not written where they stay, as another may have been chosen since they were
read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ...errors import UnitError
from ...unit import FIELDS, crops
from ...unit.fields import parse_weight
from ..infotext import weights_text
from . import html
from .values import NO_MODEL, masks_text, panel_default, parse_masks, parse_weights

CLEARED = ("negative", "focus", "mask", "pose")  # go with the references that they belong to
_ENABLED = next(field for field in FIELDS if field.name == "enabled")


class ReferenceEvents:
    """The handlers of one unit's references. models: what build_panel was given."""

    def __init__(self, index: int, models: Any) -> None:
        self.index = index
        self.models = models

    def add(self, new: Any, files: Any, weights: Any, saved: Any, box: Any, masks: Any, model: Any) -> list[Any]:
        """Pictures from the drop zone go behind those at hand; the unit is switched on, and has a model if one is
        near."""
        present, added = paths_of(files), paths_of(new)
        named = list(saved or [])
        places = [*range(len(present)), *[None] * len(added)]
        return [
            present + added,
            extended(str(weights or ""), len(present), len(added), len(named)),
            gr.update(),
            _boxes_of(box, len(present), places),
            _masks_of(masks, len(present), places),
            True,
            self._model(model),
        ]

    def use_input(self, weights: Any, saved: Any, files: Any, model: Any) -> list[Any]:
        """The picture of img2img becomes a reference: weights, saved, enabled, model."""
        named = list(saved or [])
        if html.INPUT_TEXT in named:
            return [gr.update() for _ in range(4)]
        return [
            extended(str(weights or ""), len(paths_of(files)) + len(named), 1),
            [*named, html.INPUT_TEXT],
            True,
            self._model(model),
        ]

    def _model(self, chosen: Any) -> Any:
        """One that is near, for a unit that has none."""
        return gr.update() if is_model(chosen) else self.models.suggested() or NO_MODEL

    def find(self, wanted: Any, files: Any, masks: Any) -> list[Any]:
        """The pictures of a pasted text in place of those at hand, if all were shown here before and are still there:
        files and masks. A hash stands in every published picture, so where others use the WebUI none are looked for."""
        names = [] if self.models.host.serves_others() else wanted_hashes(wanted)
        known = [html.known_path(name) for name in names]
        if not names or not all(known) or names == [html.picture_hash(path) for path in paths_of(files)]:
            return [gr.update(), gr.update()]
        return [known, ""]

    def remove(self, files: Any, weights: Any, saved: Any, box: Any, masks: Any, place: Any) -> list[Any]:
        """Takes one reference out, by its place; only the first unit stays on without any."""
        paths, named = paths_of(files), list(saved or [])
        places = [i for i in range(len(paths) + len(named)) if str(i) != str(place)]
        if not places:
            return self.clear()[:6]
        kept = [i for i in places if i < len(paths)]
        return [
            change(paths, [paths[i] for i in kept] or None),
            without(str(weights or ""), len(paths) + len(named), places),
            change(named, [named[i - len(paths)] for i in places if i >= len(paths)]),
            _boxes_of(box, len(paths), kept),
            _masks_of(masks, len(paths), kept),
            gr.update(),
        ]

    def move(self, files: Any, weights: Any, saved: Any, box: Any, masks: Any, places: Any) -> list[Any]:
        """Puts a picture at another's place. places: "from,to"."""
        paths, named = paths_of(files), list(saved or [])
        order = list(range(len(paths)))
        try:
            source, target = (int(part) for part in str(places).split(","))
            order.insert(target, order.pop(source))
        except (ValueError, IndexError):
            return [gr.update() for _ in range(5)]
        everything = [*order, *range(len(paths), len(paths) + len(named))]
        return [
            [paths[i] for i in order],
            without(str(weights or ""), len(everything), everything),
            gr.update(),
            _boxes_of(box, len(paths), order),
            _masks_of(masks, len(paths), order),
        ]

    def clear(self) -> list[Any]:
        """Takes all references out, with what belongs to them: values of images, their weights, saved references,
        boxes, masks, enabled, and CLEARED."""
        cleared = (None if name in ("negative", "pose") else "" for name in CLEARED)
        return [None, "", [], "", "", panel_default(_ENABLED, self.index), *cleared]

    def empty(self) -> list[Any]:
        """As ``clear``; what a pasted text wants, and the notes on it, go too."""
        return [*self.clear(), "", ""]


def change(old: Any, new: Any) -> Any:
    """What a handler gives for a component: ``new``, or nothing where it is as it was."""
    return gr.update() if (new or "") == (old or "") else new


def is_model(model: Any) -> bool:
    """Whether a model is chosen."""
    return isinstance(model, str) and model not in ("", NO_MODEL)


def paths_of(files: Any) -> list[str]:
    items = [] if files is None else files if isinstance(files, list) else [files]
    return [item.name for item in items]


def numbers_of(text: str, count: int) -> tuple[list[float | None], str]:
    try:
        numbers = parse_weights(text, count) if count else []
        for i, number in enumerate(numbers):
            if number is not None:
                parse_weight(number, f"weight of image {i + 1}")
        return numbers, ""
    except UnitError as error:
        return [None] * count, str(error)


def extended(text: str, present: int, added: int, behind: int = 0) -> str:
    """The weights' text for more pictures, in front of those ``behind``; one that was pasted with enough numbers
    stays."""
    numbers, problem = numbers_of(text, present + behind)
    if problem or not present + behind or not text.strip():
        return text
    return _joined([*numbers[:present], *[1.0] * added, *numbers[present:]])


def without(text: str, count: int, kept: Sequence[int]) -> str:
    """The weights' text of ``count`` references with the numbers at these places; another one stays."""
    numbers, problem = numbers_of(text, count)
    return text if problem or not text.strip() else _joined([numbers[i] for i in kept])


def _boxes_of(text: Any, count: int, places: Sequence[int | None]) -> str:
    """The boxes' text for the pictures at these places of ``count``; None: a new one, which is whole. A text that was
    pasted before its pictures stays."""
    try:
        boxes = crops.boxes(crops.parse_boxes(text or ""), count)
    except UnitError:
        return str(text or "")
    if count == 0:
        return str(text or "")
    parts = ["" if i is None or (box := boxes[i]) is None else ", ".join(f"{x:g}" for x in box) for i in places]
    return "; ".join(parts) if any(parts) else ""


def masks_of(text: Any, count: int) -> list[str]:
    """The masks of ``count`` pictures; none for a text that belongs to other pictures."""
    try:
        return parse_masks(text, count)
    except UnitError:
        return [""] * count


def _masks_of(text: Any, count: int, places: Sequence[int | None]) -> str:
    """The masks' text for the pictures at these places of ``count``; None: a new one, which has none."""
    masks = masks_of(text, count)
    return masks_text(["" if i is None else masks[i] for i in places])


def _joined(numbers: Sequence[float | None]) -> str:
    return weights_text([{"weight": 1.0 if number is None else number} for number in numbers])


def wanted_hashes(text: Any) -> list[str]:
    try:
        return list(json.loads(text)) if text else []
    except (TypeError, ValueError):
        return []
