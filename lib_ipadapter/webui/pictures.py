"""A unit's pictures, decoded and named by their content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError
from ..files.embeds import Encoded
from ..pictures import images
from ..prompts.features import Pictures
from ..prompts.references import Shelf, expanded
from ..unit import Unit
from . import fetch
from .bounds import check_pixels
from .infotext import Hashes


@dataclass(frozen=True)
class Picture:
    """A decoded picture, and the hash of its content."""

    image: Any  # RGB; of references, what was Encoded before too
    hash: str


@dataclass(frozen=True)
class Held:
    """A unit, what it names in its place, and all its pictures: the references in their order, what it should not look
    like, and its masks."""

    unit: Unit
    images: Sequence[Picture]
    negative: Sequence[Picture] = ()
    focus: Picture | None = None
    mask: Picture | None = None

    @property
    def encodes(self) -> bool:
        """Whether anything needs an encoder."""
        return bool(self.negative) or any(not isinstance(x.image, Encoded) for x in self.images)

    def pictures(self) -> Pictures:
        """What is encoded, and how."""
        focus = self.focus.image if self.focus else None
        return Pictures([x.image for x in self.images], [x.image for x in self.negative], focus)

    def hashes(self, asked: Unit) -> Hashes:
        """What the infotext keeps, for the unit that was asked for, which may name its references."""
        others: dict[str, str | list[str]] = {}
        if self.negative:
            others["negative"] = [x.hash for x in self.negative]
        others.update((name, x.hash) for name, x in (("focus", self.focus), ("mask", self.mask)) if x)
        known = {id(reference): x.hash for reference, x in zip(self.unit.images, self.images, strict=True)}
        return Hashes([known.get(id(reference), "") for reference in asked.images], others)


def held_by(unit: Unit, shelf: Shelf) -> Held:
    """Raises ImageError, which names the field, and UnitError and FileError for what is named. Transparent parts are
    white; of masks black, or the mask itself (images.load_mask)."""

    pixels = 0

    def many(field: str) -> list[Picture]:
        nonlocal pixels
        found = []
        for i, ref in enumerate(getattr(unit, field)):
            found.append(_picture(ref.image, f"{field}[{i}]", images.load_reference))
            pixels = check_pixels([found[-1].image], pixels)
        return found

    def single(field: str) -> Picture | None:
        given = getattr(unit, field)
        return None if given is None else _picture(given, field, images.load_mask)

    unit = expanded(unit, shelf)
    references, negative = many("images"), many("negative")
    return Held(unit, references, negative, single("focus"), single("mask"))


def _picture(value: Any, where: str, load: Callable[[Any], Image.Image]) -> Picture:
    if isinstance(value, Encoded):
        return Picture(value, value.hash)
    try:
        image = load(fetch.data(value) if fetch.is_url(value) else value)
    except ImageError as error:
        if isinstance(value, Path) and value.name not in str(error):
            error = ImageError(f"{value.name}: {error}")
        error.detail.update(field=where)
        raise error from error.__cause__
    return Picture(image, images.content_hash(image))
