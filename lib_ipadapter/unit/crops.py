"""Crop boxes as text: of each reference only the part in its box is encoded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnitError

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height
FITS = ("crop", "pad", "stretch", "tiles")
POSITIONS = ("center", "top", "bottom", "left", "right")
BOX_EXPECTED = (
    '"" (the whole), or "left, top, right, bottom" as shares from 0 to 1 with left < right and top < bottom, such '
    'as "0.1, 0, 0.6, 0.5"; for several pictures one each with ";" between them, empty for a whole one'
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def parse_boxes(value: Any) -> str:
    """``box`` in its normal spelling; also taken from a list of four numbers, or of such lists. Raises UnitError."""
    boxes = [None if box is None else _checked(box, value) for box in _listed(value)]
    text = "; ".join("" if box is None else ", ".join(map(_spelled, box)) for box in boxes)
    return "" if not text.strip("; ") else text


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        parts = [re.split(r"[,\s]+", part.strip()) if part.strip() else None for part in value.split(";")]
        return [None if part is None else [_number(x, value) for x in part] for part in parts]
    if value is None or isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise UnitError("box", value, BOX_EXPECTED)
    return list(value) if not value or isinstance(value[0], (Sequence, type(None))) else [value]


def _number(text: str, whole: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise UnitError("box", whole, BOX_EXPECTED)
    return float(text)


def _checked(box: Any, value: Any) -> Box:
    numbers = isinstance(box, Sequence) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in box
    )
    if not numbers or len(box) != 4:
        raise UnitError("box", value, BOX_EXPECTED)
    left, top, right, bottom = map(float, box)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UnitError("box", value, BOX_EXPECTED)
    return left, top, right, bottom


def _spelled(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def boxes(text: str, count: int) -> list[Box | None]:
    """What a normal spelling says of ``count`` pictures: one box is that of all; where there are several, those that
    are left out are whole. Raises UnitError."""
    parts = text.split(";")
    if len(parts) > max(count, 1):
        raise UnitError("box", text, f"one box for all, or {count} with ';' between them, one per picture")
    rest = parts if len(parts) == 1 else [""]
    return [_box(part) for part in [*parts, *rest * count][:count]]


def box_at(text: str, index: int, count: int) -> str:
    """The box of one of ``count`` pictures, in its normal spelling. Raises UnitError."""
    box = boxes(text, count)[index]
    return "" if box is None else parse_boxes(box)


def _box(part: str) -> Box | None:
    if not part.strip():
        return None
    left, top, right, bottom = map(float, part.split(","))
    return left, top, right, bottom
