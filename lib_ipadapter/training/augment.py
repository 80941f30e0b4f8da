"""Augmentation: what changes of a picture from one time that it is seen to the next.

All is drawn from the position alone, apart from the noise, so that a training without augmentation draws what it drew
before there was any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from ..pictures.images import over
from .source import Item

_APART = 7_919  # the draws of a position, apart from those of orders


@dataclass(frozen=True)
class Look:
    """How one sample is seen. flip: target and, where it is the same picture, reference are mirrored; across, down:
    0..1, where the target is cut; chance: for the reference."""

    flip: bool
    across: float
    down: float
    chance: np.random.Generator


@dataclass(frozen=True)
class Augmentation:
    """flip: share of the pictures that are mirrored; random_crop: the target is cut anywhere instead of in the middle;
    crop: the least share of the reference's area that is shown to the encoder, 1: all; reference_flip: share of the
    references that are mirrored; colour: how far brightness, contrast and saturation of the reference go from 1;
    background: share of the references with an alpha channel that are seen on a plain colour, else on white."""

    flip: float = 0.0
    random_crop: bool = False
    crop: float = 1.0
    reference_flip: float = 0.0
    colour: float = 0.0
    background: float = 0.0

    @property
    def of_target(self) -> bool:
        """Whether targets change."""
        return self.flip > 0 or self.random_crop

    @property
    def of_reference(self) -> bool:
        """Whether references change, apart from being mirrored along with their target."""
        return self.crop < 1 or self.reference_flip > 0 or self.colour > 0 or self.background > 0

    def look(self, seed: int, position: int) -> Look:
        """The draws of a position."""
        chance = np.random.default_rng([seed, position, _APART])
        flip, across, down = chance.random() < self.flip, float(chance.random()), float(chance.random())
        return Look(flip, *((across, down) if self.random_crop else (0.5, 0.5)), chance)

    def seen(self, item: Item, look: Look) -> Item:
        """The item mirrored, where it is, and its reference changed."""
        own = item.reference is item.picture
        picture = ImageOps.mirror(item.picture) if look.flip else item.picture
        reference = picture if own else item.reference
        changes = look.chance.random(8)
        if self.background and item.cut_out is not None:
            share, *colour = look.chance.random(4)
            if share < self.background:
                red, green, blue = (int(256 * part) for part in colour)
                reference = over(
                    ImageOps.mirror(item.cut_out) if own and look.flip else item.cut_out, (red, green, blue)
                )
        return Item(item.key, picture, self._reference(reference, changes), item.caption)

    def _reference(self, picture: Image.Image, changes: NDArray[np.float64]) -> Image.Image:
        area, ratio, across, down, flip, *colours = changes
        if self.crop < 1:
            picture = _part(picture, self.crop + (1 - self.crop) * area, ratio, across, down)
        if flip < self.reference_flip:
            picture = ImageOps.mirror(picture)
        if self.colour:
            for enhance, drawn in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colours,
                                      strict=True):  # fmt: skip
                picture = enhance(picture).enhance(1 + self.colour * (2 * drawn - 1))
        return picture


def _part(picture: Image.Image, area: float, ratio: float, across: float, down: float) -> Image.Image:
    """A part of the picture of this share of its area, of up to 4:3 times its own shape."""
    stretch = math.exp((2 * ratio - 1) * math.log(4 / 3)) ** 0.5
    width, height = (
        min(edge, max(1, round(edge * area**0.5 * factor)))
        for edge, factor in zip(picture.size, (stretch, 1 / stretch), strict=True)
    )
    left, top = math.floor((picture.width - width) * across), math.floor((picture.height - height) * down)
    return picture.crop((left, top, left + width, top + height))
