"""How much one request may bring. What a single picture may be stands in pictures.images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..errors import UnitError
from ..unit import PICTURES
from . import fetch

UNITS, IMAGES, CHARACTERS, ENTRIES = 100, 256, 20_000, 1000
URLS = 16  # of a request: each may take half a minute, and 64 MB
PIXELS = 1_000_000_000  # of a unit's pictures together: decoded, three bytes each


def check(units: Sequence[Any]) -> None:
    """The unit objects of a request, before they are parsed. Raises UnitError."""
    if len(units) > UNITS:
        raise UnitError("args", f"{len(units)} units", f"at most {UNITS} units")
    count = urls = 0
    for index, unit in enumerate(units):
        if not isinstance(unit, Mapping):
            continue
        count += sum(_count(unit.get(name)) for name in PICTURES)
        if count > IMAGES:
            raise UnitError("images", f"{count} pictures or more", f"at most {IMAGES} in all units together")
        urls += sum(map(fetch.is_url, _values(unit)))
        if urls > URLS:
            raise UnitError(
                "images", f"{urls} addresses or more", f"at most {URLS} in all units; send pictures as base64"
            )
        for name, value in unit.items():
            if name not in PICTURES and _length(value) > (CHARACTERS if isinstance(value, str) else ENTRIES):
                expected = f"at most {CHARACTERS} characters, or {ENTRIES} entries"
                raise UnitError(str(name)[:80], f"{_length(value)} of them", expected).in_unit(index)


def _values(unit: Mapping[str, Any]) -> list[Any]:
    """What stands for the pictures of a unit object."""
    found: list[Any] = []
    for name in PICTURES:
        given = unit.get(name)
        entries = given if isinstance(given, (list, tuple)) else [given]
        for entry in entries:
            found += [entry.get("image"), entry.get("mask")] if isinstance(entry, Mapping) else [entry]
    return found


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, Mapping)) else 1


def _count(pictures: Any) -> int:
    return len(pictures) if isinstance(pictures, (list, tuple)) else int(pictures is not None)


def check_pixels(pictures: Sequence[Any], seen: int = 0) -> int:
    """Adds the pixels of pictures to those ``seen`` so far. Raises UnitError."""
    total = seen + sum(x.width * x.height for x in pictures if isinstance(x, Image.Image))
    if total > PIXELS:
        raise UnitError(
            "images",
            f"pictures of {total / 1e6:.0f} megapixels or more together",
            f"at most {PIXELS / 1e6:.0f} in one unit; make them smaller, an encoder sees a few hundred pixels",
        )
    return total
