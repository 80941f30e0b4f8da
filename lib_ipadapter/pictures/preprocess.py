"""Reference mask, crop, position, tiles, sharpening and noise: pixels only, before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..unit.crops import Box
from . import images

MAX_TILES = 16


@dataclass(frozen=True)
class Preprocess:
    """How a reference becomes the encoder's square. fit: one of FITS; position: one of POSITIONS, for fit crop;
    sharpen: 0..1, of the square."""

    fit: str = "crop"
    position: str = "center"
    sharpen: float = 0.0


@dataclass(frozen=True)
class Tile:
    """A part of a picture that is encoded alone. fit: how it becomes a square; left, top: where it lies, in sides of a
    tile."""

    picture: Image.Image
    fit: str
    left: float = 0.0
    top: float = 0.0


def cut(picture: Image.Image, box: Box | None, mask: Image.Image | None) -> Image.Image:
    """The crop ``box`` of an RGB picture, with CLIP's mean colour where the reference mask, which lies over the whole
    picture, is black."""
    if mask is not None:
        neutral = Image.new("RGB", picture.size, images.NEUTRAL)
        picture = Image.composite(picture, neutral, mask.convert("L").resize(picture.size))
    if box is None:
        return picture
    (width, height), (left, top, right, bottom) = picture.size, box
    x, y = min(round(left * width), width - 1), min(round(top * height), height - 1)
    return picture.crop((x, y, max(round(right * width), x + 1), max(round(bottom * height), y + 1)))


def tiles(picture: Image.Image, how: Preprocess) -> list[Tile]:
    """The parts of an RGB picture that are encoded: one, or for fit tiles several."""
    if how.fit == "tiles":
        return _tiles(picture)
    if how.fit == "crop" and how.position != "center":
        picture = _toward(picture, how.position)
    return [Tile(picture, how.fit)]


def _toward(picture: Image.Image, position: str) -> Image.Image:
    """The square at one end of a picture that is longer in that direction; another one as it is."""
    width, height = picture.size
    side = min(width, height)
    if (position in ("left", "right")) != (width > height):
        return picture
    x, y = (width - side, height - side) if position in ("right", "bottom") else (0, 0)
    return picture.crop((x, y, x + side, y + side))


def _tiles(picture: Image.Image) -> list[Tile]:
    """Squares that together cover the picture: 2 x 2 of a square picture; of a longer one as many of its shorter side
    as cover it, with even overlap, at most MAX_TILES."""
    width, height = picture.size
    side = min(width, height)
    if width == height:
        side = max(1, width // 2)
    columns, rows = (min(-(-edge // side), MAX_TILES) for edge in picture.size)
    found = []
    for top in _starts(height, side, rows):
        for left in _starts(width, side, columns):
            tile = picture.crop((left, top, left + side, top + side))
            found.append(Tile(tile, "stretch", left / side, top / side))
    return found


def _starts(edge: int, side: int, count: int) -> list[int]:
    if count == 1:
        return [(edge - side) // 2]
    return [round(i * (edge - side) / (count - 1)) for i in range(count)]


def square(picture: Image.Image, how: Preprocess, size: int) -> Image.Image:
    """The square that the encoder is shown, for a thumbnail; for fit tiles the whole picture, padded."""
    if how.fit == "tiles":
        return images.fit(picture, size, "pad")
    tile = tiles(picture, how)[0]
    return sharpened(images.fit(tile.picture, size, tile.fit), how.sharpen)


def sharpened(picture: Image.Image, amount: float) -> Image.Image:
    """Contrast-adaptive sharpening (AMD FidelityFX CAS, as ComfyUI_IPAdapter_plus has it) by 0..1; 0: as it is."""
    if not amount:
        return picture
    values = np.asarray(picture, dtype=np.float64) / 255
    height, width = values.shape[:2]
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    cross, corners = np.stack([near[i] for i in (1, 3, 4, 5, 7)]), np.stack([near[i] for i in (0, 2, 6, 8)])
    # Twice the range: of the cross, and of cross and corners together
    low = cross.min(0) + np.minimum(cross.min(0), corners.min(0))
    high = cross.max(0) + np.maximum(cross.max(0), corners.max(0))
    amplitude = np.sqrt(np.minimum(low, 2 - high).clip(0) / (high + 1e-6))
    weight = -amplitude * (amount * (1 / 5 - 1 / 8) + 1 / 8)
    result = ((near[1] + near[3] + near[5] + near[7]) * weight + values) / (1 + 4 * weight)
    return Image.fromarray(np.rint(result.clip(0, 1) * 255).astype(np.uint8))


def noised(picture: Image.Image, amount: float) -> Image.Image:
    """The RGB picture faded by 0..1 into Gaussian noise, the same for each; 0: as it is."""
    if not amount:
        return picture
    values = np.asarray(picture, dtype=np.float64)
    noise = 127.5 + 64 * np.random.default_rng(0).standard_normal(values.shape)
    mixed = (1 - amount) * values + amount * noise
    return Image.fromarray(np.rint(mixed.clip(0, 255)).astype(np.uint8))
