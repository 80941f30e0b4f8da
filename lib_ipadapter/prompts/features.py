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

from ..adapters.variant import VariantSpec
from ..errors import UnitError
from ..files.embeds import Embeds, Encoded, Source
from ..pictures import images, preprocess
from ..unit import Unit, crops


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
    """The decoded pictures of a unit, RGB: the references in its order, which may be encoded already, what it should not
    look like, and the mask over the references (any mode; white counts)."""

    images: Sequence[Image.Image | Encoded]
    negative: Sequence[Image.Image] = ()
    focus: Image.Image | None = None


def cond_features(unit: Unit, pictures: Pictures, source: FeatureSource, spec: VariantSpec) -> list[Tensor]:
    """The feature of each reference. Raises FileError for embeds that the adapter does not take."""
    look = preprocess.Look(unit.fit, unit.position, unit.sharpen)
    return [
        part.for_adapter(spec) if isinstance(part, Encoded) else feature(part, look, source, spec)
        for part in _counted(unit, pictures)
    ]


def uncond_feature(unit: Unit, pictures: Pictures, source: FeatureSource, spec: VariantSpec) -> Tensor:
    """The feature of the unconditional side: of the negative references, else, with noise, of the references, the
    mean of all, faded into noise; without either, of no picture. Raises UnitError for noise on embeds alone."""
    if not pictures.negative and not unit.noise:
        return _nothing(pictures.images, source, spec)
    shown = pictures.negative or [x for x in _counted(unit, pictures) if not isinstance(x, Encoded)]
    if not shown:
        raise UnitError(
            "noise", unit.noise, "0, or negative references: saved embeds hold no picture to fade"
        )
    look = preprocess.Look(unit.fit, unit.position, unit.sharpen)
    return torch.stack([feature(picture, look, source, spec, unit.noise) for picture in shown]).mean(0)


def _counted(unit: Unit, pictures: Pictures) -> list[Image.Image | Encoded]:
    boxes = crops.boxes(unit.box, len(pictures.images))
    return [
        part if isinstance(part, Encoded) else preprocess.counted(part, box, pictures.focus)
        for part, box in zip(pictures.images, boxes, strict=True)
    ]


def _nothing(references: Sequence[Image.Image | Encoded], source: FeatureSource, spec: VariantSpec) -> Tensor:
    """The feature of no picture; of references that are all encoded, without an encoder."""
    held = [part.unconditional for part in references if isinstance(part, Encoded)]
    if len(held) == len(references) and held[0] is not None:
        return held[0]
    return source.unconditional(spec)


def embeds(
    name: str, unit: Unit, pictures: Pictures, hashes: Sequence[str], source: FeatureSource, spec: VariantSpec,
    title: str = "",
) -> Embeds:  # fmt: skip
    """The references of ``unit`` to be saved, for adapters like ``spec``."""
    nothing = _nothing(pictures.images, source, spec) if spec.feature == "penultimate" else None
    weights = tuple(reference.weight for reference in unit.images)
    features = tuple(cond_features(unit, pictures, source, spec))
    return Embeds(name, title or name, Source.of(spec, unit.fit), tuple(hashes), weights, features, nothing)


def feature(
    picture: Image.Image, look: preprocess.Look, source: FeatureSource, spec: VariantSpec, noise: float = 0.0
) -> Tensor:
    """The feature of one RGB picture, faded by ``noise`` 0..1."""
    parts = preprocess.views(picture, look)
    features = []
    for part in parts:
        shown, fit = part.picture, part.fit
        if look.sharpen or noise:
            shown = images.fit(shown, source.side(spec), fit)
            shown, fit = preprocess.noised(preprocess.sharpened(shown, look.sharpen), noise), "stretch"
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
    for grid, (x, y) in zip(grids, starts, strict=True):
        total[:, y : y + side, x : x + side] += grid
        count[y : y + side, x : x + side] += 1
    pooled = F.adaptive_avg_pool2d(total / count.clamp(min=1), side)
    return torch.cat([whole, pooled.flatten(1).T[None]], dim=1)
