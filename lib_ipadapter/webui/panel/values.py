"""The panel's values as unit objects. Pure: the order of components per unit is read off ``unit.FIELDS``.

A unit has one component per field, in the table's order; ``images`` has four: the files, what is chosen by name
behind them, the weights of all, and, at the unit's end, the masks of the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UnitError
from ...options import Option
from ...unit import FIELDS
from ...unit.names import KINDS, Named
from .uploads import Upload

NO_MODEL = "None"
WEIGHTS = "image weights"
SAVED = "saved references"
MASKS = "image masks"


def slots() -> list[str]:
    """Names of one unit's components in order: the fields' names, SAVED and WEIGHTS behind ``images``, MASKS last."""
    names: list[str] = []
    for field in FIELDS:
        names += [field.name, SAVED, WEIGHTS] if field.name == "images" else [field.name]
    return [*names, MASKS]


def panel_default(field: Option, index: int) -> Any:
    """A field's value in a fresh panel: as in the API, but only the first unit is on."""
    return index == 0 if field.name == "enabled" else field.default


def units_from_panel(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Script arguments behind the accordion's flag as objects for ``Unit.parse``.

    A unit that is off comes as ``{"enabled": False}``. None stands for a default. Raises UnitError.
    """
    return [_unit(chunk, index) for index, chunk in enumerate(_chunks(list(values)))]


def _chunks(values: list[Any]) -> Iterator[dict[str, Any]]:
    names = slots()
    for start in range(0, len(values), len(names)):
        chunk = values[start : start + len(names)]
        yield dict(zip(names, chunk + [None] * (len(names) - len(chunk)), strict=True))


def _unit(values: Mapping[str, Any], index: int) -> dict[str, Any]:
    unit: dict[str, Any] = {}
    for field in FIELDS:
        value = values[field.name]
        unit[field.name] = panel_default(field, index) if value is None else value
    if not unit["enabled"]:
        return {"enabled": False}
    if unit.get("model") == NO_MODEL:
        unit["model"] = ""
    if _untouched(unit, values, index):
        return {"enabled": False}
    try:
        for field in FIELDS:
            if field.kind == "images":
                more = (values[WEIGHTS], values[SAVED], values[MASKS]) if field.name == "images" else (None,)
                unit[field.name] = pictures(values[field.name], *more)
            if field.kind == "image":
                # a data URI from the mask editor; it is not seen where another region is chosen, and does not count
                kept = field.name != "mask" or unit["region"] == "mask"
                unit[field.name] = (values[field.name] or None) if kept else None
    except UnitError as error:
        raise error.in_unit(index) from None
    return unit


def _untouched(unit: Mapping[str, Any], values: Mapping[str, Any], index: int) -> bool:
    """Whether nothing was chosen in a unit that is on: it does not count."""
    if unit["images"] or unit["negative"] or values[SAVED] or unit["model"]:
        return False
    return all(
        unit[field.name] in (panel_default(field, index), "", None, [])
        for field in FIELDS
        if field.name not in ("enabled", "fit", "images", "negative", "model")
    )


def shown_name(named: Named) -> str:
    """A choice of the panel's saved references."""
    return f"{named.kind}: {named.name}"


def named_in(text: Any) -> dict[str, str] | None:
    """The entry of ``images`` that such a choice means; None for another text."""
    kind, separator, name = text.partition(": ") if isinstance(text, str) else ("", "", "")
    return {kind: name} if separator and kind in KINDS else None


def _chosen(choices: Any) -> list[dict[str, str]]:
    items = [] if choices is None else choices if isinstance(choices, (list, tuple)) else [choices]
    found = [named_in(item) for item in items]
    if None in found:
        raise UnitError(SAVED, items, 'a list of texts such as "embeds: NAME" or "folder: NAME"')
    return [entry for entry in found if entry is not None]


def pictures(files: Any, weights: Any, saved: Any = None, masks: Any = None) -> list[dict[str, Any]]:
    """Files, what is chosen by name, the weights' text and the files' masks (see ``parse_masks``) as entries of
    ``images``.

    ``files``: None, one or a list of gradio's file objects (their ``name`` is a path), or what an API
    request puts in their place, which is passed on for ``Unit.parse`` to judge. Raises UnitError.
    """
    items = [] if files is None else files if isinstance(files, (list, tuple)) else [files]
    sources = [*(_source(item) for item in items), *_chosen(saved)]
    numbers = parse_weights(weights, len(sources)) if sources else []
    covers = [*parse_masks(masks, len(items)), *[""] * (len(sources) - len(items))]
    return [_entry(*of_one) for of_one in zip(sources, numbers, covers, strict=True)]


def _entry(source: Any, weight: float | None, mask: str) -> dict[str, Any]:
    item = dict(source) if isinstance(source, Mapping) else {"image": source}
    item |= {} if weight is None else {"weight": weight}
    return {**item, "mask": mask} if mask else item


def parse_masks(text: Any, count: int) -> list[str]:
    """The masks of ``count`` files, a data URI each or "" for none, from their JSON list. Raises UnitError."""
    if not text:
        return [""] * count
    try:
        masks = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        masks = None
    if not isinstance(masks, list) or len(masks) != count or not all(isinstance(mask, str) for mask in masks):
        raise UnitError(MASKS, str(text)[:80], f'"", or a JSON list of {count} texts, one per image: a mask or ""')
    return masks


def masks_text(masks: Sequence[str]) -> str:
    """The JSON list of masks; "" where there is none."""
    return json.dumps(list(masks)) if any(masks) else ""


def _source(item: Any) -> Any:
    """A path only for an object that gradio made of an upload; never for text that a request sent."""
    if isinstance(item, Upload):
        return item.source
    if isinstance(item, (str, bytes, Mapping, Path)):
        return item
    name = getattr(item, "name", None)
    return Path(name) if isinstance(name, str) else item


def parse_weights(text: Any, count: int) -> list[float | None]:
    """The text of the tiles' weights as one number per picture; each None if it is empty. Raises UnitError."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return [None] * count
    expected = f'"" (all 1), or {count} numbers separated by commas, one per image, such as "1, 0.5"'
    needs = f"{count} images need {count} weights" if count > 1 else "1 image needs 1 weight"
    example = ", ".join(["1", "0.5", "0.8"][:count]) + (", ..." if count > 3 else "")
    sentence = f'{needs}, such as "{example}", one per picture; got "{text}"'
    try:
        numbers = [float(part) for part in re.split(r"[\s,;]+", str(text).strip()) if part]
    except ValueError:
        raise UnitError(WEIGHTS, text, expected, sentence) from None
    if len(numbers) != count:
        raise UnitError(WEIGHTS, text, expected, sentence)
    return list(numbers)
