"""Crops of references as text: only the part inside its box is encoded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnitError

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height
FITS = ("crop", "pad", "stretch", "tiles")
POSITIONS = ("center", "top", "bottom", "left", "right")
BOX_EXPECTED = (
    '"" (the whole), or "left, top, right, bottom" as fractions from 0 to 1 with left < right and top < bottom, such '
    'as "0.1, 0, 0.6, 0.5"; for several pictures one for each, separated by ";", empty for a whole one'
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def parse_boxes(value: Any) -> str:
    """``box`` in its normal form, from a text, four numbers, or a list of these. Raises UnitError."""
    boxes = [None if box is None else _checked(box, value) for box in _boxes_in(value)]
    text = "; ".join("" if box is None else ", ".join(map(_format, box)) for box in boxes)
    return "" if not text.strip("; ") else text


def _boxes_in(value: Any) -> list[Any]:
    """The boxes of a value, each None or what should be four numbers. Raises UnitError."""
    if isinstance(value, str):
        return [_numbers(part, value) for part in value.split(";")]
    if value is None or isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise UnitError("box", value, BOX_EXPECTED)
    return list(value) if not value or isinstance(value[0], (Sequence, type(None))) else [value]


def _numbers(part: str, text: str) -> list[float] | None:
    """The numbers of one box of ``text``; None where it is empty. Raises UnitError."""
    if not part.strip():
        return None
    words = re.split(r"[,\s]+", part.strip())
    if not all(map(_NUMBER.fullmatch, words)):
        raise UnitError("box", text, BOX_EXPECTED)
    return [float(word) for word in words]


def _checked(box: Any, value: Any) -> Box:
    numbers = isinstance(box, Sequence) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box)
    if not numbers or len(box) != 4:
        raise UnitError("box", value, BOX_EXPECTED)
    if not all(-1 <= x <= 2 for x in box):  # an integer may be larger than any float
        raise UnitError("box", value, BOX_EXPECTED)
    left, top, right, bottom = map(float, box)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UnitError("box", value, BOX_EXPECTED)
    return left, top, right, bottom


def _format(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def boxes(text: str, count: int) -> list[Box | None]:
    """The boxes of ``count`` pictures from a normal form: a single box is that of all; of several, those that are left
    out stand for the whole picture. Raises UnitError."""
    parts = text.split(";")
    if len(parts) > max(count, 1):
        raise UnitError("box", text, f"one box for all, or {count} separated by ';', one for each picture")
    rest = parts if len(parts) == 1 else [""]
    return [_box(part) for part in [*parts, *rest * count][:count]]


def box_at(text: str, index: int, count: int) -> str:
    """The box of one of ``count`` pictures, in its normal form. Raises UnitError."""
    box = boxes(text, count)[index]
    return "" if box is None else parse_boxes(box)


def _box(part: str) -> Box | None:
    if not part.strip():
        return None
    left, top, right, bottom = map(float, part.split(","))
    return left, top, right, bottom
