"""Reads the attributes of a small-world image from its pixels, without a network, so that no model judges itself.

What differs from the border's colour is the object. Its outline against those of all shapes, the hue of its
bright pixels, and the share and direction of its dark ones say what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from . import data

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

DIFFERENT = 0.14  # least difference from the background, in the channel that differs most, 0..1
LEAST_AREA = 150  # pixels of an object
GRID, GRID_AREA = 48, 700.0  # shapes are compared at this side and area, in pixels
PALE = 0.25  # saturation below which a pixel has no colour
BETWEEN_SIZES = 32.5  # radius in pixels


@dataclass(frozen=True)
class Reading:
    """The attributes that were read; None for those that were not found."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    place: str | None = None

    def agrees(self, thing: data.Thing, attribute: str) -> bool:
        """Whether the attribute of that name equals the object's."""
        return bool(getattr(self, attribute) == getattr(thing, attribute))


def read(picture: Image.Image) -> Reading:
    """Reads the one object of an image of any size; lengths are scaled to SIDE."""
    values = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    mask = object_mask(values)
    if mask.sum() < LEAST_AREA:
        return Reading()
    shape, radius = _outline(mask)
    return Reading(
        shape=shape,
        colour=_colour(values[mask]),
        texture=_texture(values, mask),
        size="small" if radius < BETWEEN_SIZES else "large",
        place=_place(mask),
    )


def object_mask(values: Floats) -> Mask:
    """Foreground mask [H, W] of an image [H, W, 3]."""
    border = np.concatenate([values[:3].reshape(-1, 3), values[-3:].reshape(-1, 3), values[:, :3].reshape(-1, 3),
                             values[:, -3:].reshape(-1, 3)])  # fmt: skip
    different = abs(values - np.median(border, axis=0)).max(-1) > DIFFERENT
    smooth = _image(different).filter(ImageFilter.MedianFilter(5))
    return _largest(np.asarray(smooth) > 0)


def _image(mask: Mask) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _largest(mask: Mask) -> Mask:
    """The largest connected component, by spreading labels until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = labels
        for axis in (0, 1):
            for step in (1, -1):
                spread = np.maximum(spread, _shifted(spread, step, axis))
        spread = np.where(mask, spread, 0)
        if (spread == labels).all():
            break
        labels = spread
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return labels == counts.argmax() if counts.any() else mask


def _shifted(labels: NDArray[np.int64], step: int, axis: int) -> NDArray[np.int64]:
    moved = np.roll(labels, step, axis)
    edge: list[slice | int] = [slice(None), slice(None)]
    edge[axis] = 0 if step == 1 else -1
    moved[tuple(edge)] = 0
    return moved


# shape


def _outline(mask: Mask) -> tuple[str, float]:
    """(shape, radius in pixels)."""
    templates, names, units = _templates()
    area = float(mask.sum())
    seen = _normal(mask, area)
    overlap = (templates & seen).sum((1, 2)) / (templates | seen).sum((1, 2))
    best = int(overlap.argmax())
    return names[best], float((area / units[best]) ** 0.5)


def _normal(mask: Mask, area: float) -> Mask:
    """The mask scaled to GRID_AREA, with its centroid in the middle of the grid."""
    rows, columns = np.nonzero(mask)
    scale = (area / GRID_AREA) ** 0.5  # mask pixels per grid pixel
    left, top = columns.mean() + 0.5 - scale * GRID / 2, rows.mean() + 0.5 - scale * GRID / 2
    affine = (scale, 0, left, 0, scale, top)
    moved = _image(mask).transform((GRID, GRID), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(moved) > 127


@lru_cache(maxsize=1)
def _templates() -> tuple[Mask, list[str], list[float]]:
    """Templates [T, GRID, GRID] of all shapes at several angles, their names, and their area at radius 1."""
    axis = np.arange(data.SIDE) - (data.SIDE - 1) / 2
    x, y = np.meshgrid(axis, axis)
    masks, names, units = [], [], []
    for name, distance in data.DISTANCES.items():
        for angle in np.deg2rad((-12, -6, 0, 6, 12)):
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            mask = distance(u, v, 40.0) < 0
            masks.append(_normal(mask, float(mask.sum())))
            names.append(name)
            units.append(float(mask.sum()) / 40.0**2)
    return np.stack(masks), names, units


# colour and texture


def _colour(pixels: Floats) -> str | None:
    """The colour name of the bright pixels among pixels [N, 3]."""
    value = pixels.max(-1)
    bright = np.median(pixels[value >= 0.8 * np.quantile(value, 0.95)], axis=0)
    high, low = bright.max(), bright.min()
    if high - low < PALE * high:
        return None
    hue = _hue(bright, high, high - low)
    return min(data.HUES, key=lambda name: abs((hue - data.HUES[name] + 180) % 360 - 180))


def _hue(pixel: Floats, high: float, span: float) -> float:
    red, green, blue = pixel
    if high == red:
        return float(60 * (green - blue) / span) % 360
    return float(120 + 60 * (blue - red) / span) if high == green else float(240 + 60 * (red - green) / span)


def _texture(values: Floats, mask: Mask) -> str | None:
    inside = np.asarray(_image(mask).filter(ImageFilter.MinFilter(5))) > 0
    if inside.sum() < 60:
        return None
    value = values.max(-1)
    value = value / np.quantile(value[inside], 0.95)
    dark = float((value[inside] < 0.64).mean())
    if dark < 0.07:
        return "plain"
    if _coherence(value, inside) > 0.45:
        return "striped"
    return "dotted" if dark < 0.37 else "checkered"


def _coherence(value: Floats, inside: Mask) -> float:
    """Coherence 0..1 of the gradients of ``value``, by the structure tensor."""
    down, right = np.gradient(value)
    a, b, c = (right[inside] ** 2).sum(), (right[inside] * down[inside]).sum(), (down[inside] ** 2).sum()
    return float(np.hypot(a - c, 2 * b) / max(a + c, 1e-9))


def _place(mask: Mask) -> str:
    rows, columns = np.nonzero(mask)
    scale = data.SIDE / mask.shape[0]
    x, y = (float(c.mean()) * scale - (data.SIDE - 1) / 2 for c in (columns, rows))
    return min(data.OFFSETS, key=lambda name: np.hypot(x - data.OFFSETS[name][0], y - data.OFFSETS[name][1]))
