"""Which face of a picture is meant, as a unit's field."""

from __future__ import annotations

from typing import Any

from ..errors import UnitError

CHOICES = ("largest", "leftmost", "rightmost", "topmost", "centre")
MAX_CHOICE = 999
CHOICE_EXPECTED = f"one of {', '.join(CHOICES)}, or a number from 0 to {MAX_CHOICE}: faces counted from the left"
# What a user may say of a file whose shapes are those of two kinds
KINDS = ("auto", "faceid-plusv2", "faceid-plus", "instantid", "unnorm")

POSES = ("reference", "redrawn")  # whose pose counts
ALL = "all"  # faces
POSE_EXPECTED = f"{ALL}, or {CHOICE_EXPECTED}"


def parse_pose_face(value: Any) -> str:
    """The normal form of ``pose_face``: ALL, or as ``parse_face``. Raises UnitError."""
    return ALL if isinstance(value, str) and value.strip().lower() == ALL else parse_face(value, "pose_face")


def parse_face(value: Any, field: str = "face") -> str:
    """The normal form of the field: one of CHOICES, or a number as text. Raises UnitError."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise UnitError(field, value, CHOICE_EXPECTED)
    text = value.strip().lower() or CHOICES[0]
    if text in CHOICES:
        return text
    if not (text.isascii() and text.isdecimal() and int(text[:9]) <= MAX_CHOICE and len(text) < 9):
        raise UnitError(field, value, CHOICE_EXPECTED)
    return str(int(text))
