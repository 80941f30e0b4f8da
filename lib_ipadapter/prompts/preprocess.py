"""Stage 2, preprocess: a ResolvedUnit to the squares that an encoder is shown."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from PIL import Image

from ..cache import Lazy
from ..pictures import images
from ..pictures import preprocess as pixels
from ..pictures.picture import Picture
from ..pictures.preprocess import Preprocess
from ..unit import crops
from ..unit.crops import Box
from .embeds import EncodedReference
from .resolve import ResolvedUnit


@dataclass(frozen=True)
class Square:
    """An RGB picture of the encoder's size. left, top: where it lies among the tiles of a picture, in sides of one."""

    image: Image.Image
    left: float = 0.0
    top: float = 0.0


Squares = Lazy[list[Square]]  # of one picture: one square, or its tiles


@dataclass(frozen=True)
class Preprocessed:
    """references: in the unit's order; unconditional: the pictures whose mean is the unconditional side, none for no
    picture. Both are computed when an encoder needs them."""

    references: tuple[Squares | EncodedReference, ...]
    unconditional: tuple[Squares, ...] = ()


def preprocess(resolved: ResolvedUnit, side: int) -> Preprocessed:
    """Reference mask, crop, fit, sharpening and noise, to squares of ``side`` pixels. A picture whose content is not
    known yet is decoded here, once, and dropped again; a known one only if its squares are needed."""
    unit = resolved.unit
    how = Preprocess(unit.fit, unit.position, unit.sharpen)
    boxes = crops.boxes(unit.box, len(resolved.references))
    faded = unit.noise > 0 and not resolved.negative
    references: list[Squares | EncodedReference] = []
    unconditional: list[Squares] = []
    for reference, box, mask in zip(resolved.references, boxes, resolved.reference_masks, strict=True):
        if isinstance(reference, EncodedReference):
            references.append(reference)
            continue
        asked = [0.0, unit.noise] if faded else [0.0]
        made = _squares(reference, box, mask, how, asked, side, drop=resolved.own(mask))
        references.append(made[0])
        unconditional += made[1:]
    for picture in resolved.negative:
        unconditional += _squares(picture, None, None, how, [unit.noise], side)
    resolved.drop_masks()
    return Preprocessed(tuple(references), tuple(unconditional))


def _squares(
    picture: Picture,
    box: Box | None,
    mask: Picture | None,
    how: Preprocess,
    noises: list[float],
    side: int,
    drop: bool = False,
) -> list[Squares]:
    """The squares of one picture for each amount of noise. drop: the mask is of no other picture, and is freed."""
    known = picture.is_known
    key: Hashable = (picture.id, box, None if mask is None else mask.id, how, side)

    def make(noise: float) -> list[Square]:
        try:
            return squares(picture.image(), box, None if mask is None else mask.image(), how, noise, side)
        finally:
            if known:
                picture.drop()
            if drop and mask is not None:
                mask.drop()

    made = [Lazy((key, noise), lambda noise=noise: make(noise)) for noise in noises]  # type: ignore[misc]
    if not known:
        for each in made:
            each()
        picture.drop()
    return made


def squares(
    picture: Image.Image,
    box: Box | None,
    mask: Image.Image | None,
    how: Preprocess,
    noise: float,
    side: int,
) -> list[Square]:
    """The squares of one RGB picture, faded by ``noise`` 0..1."""
    found = []
    for tile in pixels.tiles(pixels.cut(picture, box, mask), how):
        square = images.fit(tile.picture, side, tile.fit)
        square = pixels.noised(pixels.sharpened(square, how.sharpen), noise)
        found.append(Square(square, tile.left, tile.top))
    return found
