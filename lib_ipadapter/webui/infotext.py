"""The infotext of the units: one JSON value under one key, and back. Pure: imports no ``modules``.

``[{"model": ..., "weight": ..., "images": [hash]}]``: one object per enabled unit with the fields that
differ from their defaults. ``unit`` (counted from 1, as people see it) stands where it is not the object's
place in the list. A picture is its hash, or ``{"hash": ..., "weight": ..., "mask": hash}`` where its weight is not 1 or
it has a mask of its own; so is a ``mask`` and the other pictures of a unit. Pictures themselves cannot be kept in a
text; what is named is ``{"embeds": name}``, ``{"folder": name}`` or ``{"input": "img2img"}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnitError
from ..unit import FIELDS, PICTURES, Unit
from ..unit.fields import Reference, parse_weight
from ..unit.names import KINDS, Named
from .panel.values import shown_name

KEY = TITLE = "IP-Adapter"  # in an infotext; of the script
_FIELDS = {f.name: f for f in FIELDS if f.in_infotext and f.name not in PICTURES and f.name != "enabled"}
_LABELS = {f.name: f"the {f.label.lower()}" for f in FIELDS if f.name in PICTURES}
_MAX_UNITS = 100


@dataclass(frozen=True)
class Pasted:
    """What a text says: unit objects by place (0-based), and what of it could not be used, for people."""

    units: dict[int, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hashes:
    """Of a unit's references, in their order ("" for what is named); of its other pictures by their fields, a hash or a
    list of them; of the references' own masks, "" for none."""

    images: Sequence[str] = ()
    others: Mapping[str, str | list[str]] = field(default_factory=dict)
    masks: Sequence[str] = ()


def to_infotext(units: Sequence[Unit], hashes: Sequence[Hashes]) -> str:
    """The value of ``KEY`` for all units of a run; ``hashes[i]`` are those of ``units[i]``."""
    entries: list[dict[str, Any]] = []
    for index, (unit, names) in enumerate(zip(units, hashes, strict=True)):
        if unit.enabled:
            place = {} if index == len(entries) else {"unit": index + 1}
            masks = names.masks or [""] * len(names.images)
            images = [_picture(*of_one) for of_one in zip(names.images, unit.images, masks, strict=True)]
            entries.append({**place, **unit.changed(), **names.others, "images": images})
    return json.dumps(entries, ensure_ascii=False)


def _picture(name: str, reference: Reference, mask: str) -> Any:
    more: dict[str, Any] = {} if reference.weight == 1.0 else {"weight": reference.weight}
    more |= {"mask": mask} if mask else {}
    if isinstance(reference.image, Named):
        return {reference.image.kind: reference.image.name, **more}
    return {"hash": name, **more} if more else name


def read(text: Any) -> Pasted:
    """Reads a value of ``KEY``. What is foreign or broken is left out and noted; never raises."""
    try:
        entries = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return Pasted(notes=("its IP-Adapter value cannot be read and was ignored",))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return Pasted(notes=("its IP-Adapter value is not a list of units and was ignored",))
    units: dict[int, dict[str, Any]] = {}
    notes: list[str] = []
    for place, entry in enumerate(entries):
        index = _place(entry.get("unit", place + 1))
        if index is None or index in units:
            notes.append(f"its unit {place + 1} has no usable number and was ignored")
            continue
        units[index] = _unit(entry, index, notes)
    return Pasted(units, tuple(notes))


def _place(number: Any) -> int | None:
    whole = isinstance(number, int) and not isinstance(number, bool)
    return number - 1 if whole and 1 <= number <= _MAX_UNITS else None


def _unit(entry: Mapping[str, Any], index: int, notes: list[str]) -> dict[str, Any]:
    """The entry's usable fields; the others go to the notes."""
    unit: dict[str, Any] = {"images": _images(entry.get("images", []), index, notes)}
    for name, value in entry.items():
        if name in ("unit", "images"):
            continue
        if name in PICTURES and (shown := _hashes(value)):
            notes.append(f"unit {index + 1}: {_LABELS[name]} {shown} is still to be added")
            continue
        try:
            unit[name] = _FIELDS[name].parse(value)
        except (KeyError, UnitError):
            shown = f"{str(name)[:40]} = {str(value)[:60]}"
            notes.append(f"unit {index + 1}: {shown} is not known here and was ignored")
    return unit


def _hashes(value: Any) -> str:
    """The hash, or those of a list; "" for anything else."""
    names = value if isinstance(value, list) else [value]
    return ", ".join(name[:40] for name in names) if all(isinstance(name, str) for name in names) else ""


def _images(value: Any, index: int, notes: list[str]) -> list[dict[str, Any]]:
    images = []
    for place, item in enumerate(value if isinstance(value, list) else [value]):
        pair = item if isinstance(item, dict) else {"hash": item}
        try:
            weight = parse_weight(pair.get("weight", 1.0), "images.weight")
        except UnitError:
            weight = None
        kind = next((kind for kind in KINDS if kind in pair), "hash")
        if weight is None or not isinstance(pair.get(kind), str):
            notes.append(f"unit {index + 1}: a picture's entry cannot be read and was ignored")
            continue
        if isinstance(pair.get("mask"), str):
            notes.append(f"unit {index + 1}: the mask {pair['mask'][:40]} of image {place + 1} is still to be added")
        images.append({kind: pair[kind], "weight": weight})
    return images


def _named(image: Mapping[str, Any]) -> bool:
    return any(kind in image for kind in KINDS)


def named_texts(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """The panel's "Saved references" of references as ``read`` gives them."""
    return [shown_name(Named(kind, image[kind])) for image in images for kind in KINDS if kind in image]


def weights_text(images: Sequence[Mapping[str, Any]]) -> str:
    """The panel's text of weights of references as ``read`` gives them, pictures first: "" where all are 1."""
    weights = [float(image["weight"]) for image in sorted(images, key=_named)]
    return "" if all(weight == 1.0 for weight in weights) else ", ".join(map(_number, weights))


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def match(wanted: Sequence[str], present: Sequence[str], called: Callable[[str], str] = lambda digest: "") -> str:
    """One sentence for the panel: are the pictures at hand those that a text names? "" if it names none. called: the
    file's name of a picture by its hash, where it is known."""
    missing = [called(name) or name for name in wanted if name not in present]
    if not wanted:
        return ""
    if not missing and len(wanted) == len(present):
        order = "" if list(wanted) == list(present) else ", in another order"
        return f"These are the images of the pasted text{order}."
    if missing:
        names = ", ".join(missing)
        these = "the image" if len(missing) == 1 else "the images"
        others = " Other images are in this unit now." if present else ""
        return f"Add {these} that this text was made with: {names}.{others}"
    return f"The pasted text used {_count(len(wanted))}, and here are {len(present)}."


def _count(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"
