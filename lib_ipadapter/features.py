"""References to features: what of each counts, tiles put together again, and the unconditional side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import images, views
from .unit import Unit
from .variant import VariantSpec


class FeatureSource(Protocol):
    """Where image features come from: an encoder, most often behind a cache."""

    def features(self, picture: Image.Image, fit: str, spec: VariantSpec) -> Tensor:
        """The feature that ``spec`` takes, of an RGB picture: pooled [1, E] or penultimate [1, T, W]."""

    def unconditional(self, spec: VariantSpec) -> Tensor:
        """The same feature of no picture (facts of each variant: zeros, or zero pixels encoded)."""

    def side(self, spec: VariantSpec) -> int:
        """Side of the encoder's square, pixels."""


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of a unit, RGB: the references in its order, what it should not look like, and the mask
    over the references (any mode; white counts)."""

    images: Sequence[Image.Image]
    negative: Sequence[Image.Image] = ()
    focus: Image.Image | None = None


def cond_features(unit: Unit, pictures: Pictures, source: FeatureSource, spec: VariantSpec) -> list[Tensor]:
    """The feature of each reference."""
    look = views.Look(unit.fit, unit.position, unit.sharpen)
    return [feature(picture, look, source, spec) for picture in _counted(unit, pictures)]


def uncond_feature(unit: Unit, pictures: Pictures, source: FeatureSource, spec: VariantSpec) -> Tensor:
    """The feature of the unconditional side: of the negative references, else, with noise, of the references, the
    mean of all, faded into noise; without either, of no picture."""
    if not pictures.negative and not unit.noise:
        return source.unconditional(spec)
    shown = pictures.negative or _counted(unit, pictures)
    look = views.Look(unit.fit, unit.position, unit.sharpen)
    return torch.stack([feature(picture, look, source, spec, unit.noise) for picture in shown]).mean(0)


def _counted(unit: Unit, pictures: Pictures) -> list[Image.Image]:
    boxes = views.boxes(unit.box, len(pictures.images))
    return [views.counted(picture, box, pictures.focus) for picture, box in zip(pictures.images, boxes)]


def feature(
    picture: Image.Image, look: views.Look, source: FeatureSource, spec: VariantSpec, noise: float = 0.0
) -> Tensor:
    """The feature of one RGB picture, faded by ``noise`` 0..1."""
    parts = views.views(picture, look)
    features = []
    for part in parts:
        shown, fit = part.picture, part.fit
        if look.sharpen or noise:
            shown = images.fit(shown, source.side(spec), fit)
            shown, fit = views.noised(views.sharpened(shown, look.sharpen), noise), "stretch"
        features.append(source.features(shown, fit, spec))
    return features[0] if len(parts) == 1 else merged(features, [(part.left, part.top) for part in parts])


def merged(features: Sequence[Tensor], places: Sequence[tuple[float, float]]) -> Tensor:
    """The features of tiles as one of the same shape. places: left and top edge of each, in sides of a tile.

    Pooled [1, E]: the mean. Penultimate [1, T, W]: the patches' tokens, a square grid behind those that stand for the
    whole (CLIP: its class token), lie side by side as the tiles do, the mean where tiles overlap, and are
    averaged over the area to the size of one grid; of the others the mean.
    """
    tiles = torch.cat(list(features))
    if tiles.dim() == 2:
        return tiles.mean(0, keepdim=True)
    side = isqrt(tiles.shape[1])
    others = tiles.shape[1] - side * side
    whole = tiles[:, :others].mean(0, keepdim=True)
    grids = tiles[:, others:].transpose(1, 2).unflatten(-1, (side, side))  # [n, W, side, side]
    starts = [(round(left * side), round(top * side)) for left, top in places]
    width, height = (max(start[i] for start in starts) + side for i in (0, 1))
    total, count = grids.new_zeros(grids.shape[1], height, width), grids.new_zeros(height, width)
    for grid, (x, y) in zip(grids, starts):
        total[:, y : y + side, x : x + side] += grid
        count[y : y + side, x : x + side] += 1
    pooled = F.adaptive_avg_pool2d(total / count.clamp(min=1), side)
    return torch.cat([whole, pooled.flatten(1).T[None]], dim=1)
