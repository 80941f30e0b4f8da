"""Stage 3, encode: squares to Features. A feature is encoded once and cached by its squares and its encoder."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..cache import Cache, Lazy
from ..encoders.spec import ZERO_FEATURES, Need
from ..errors import UnitError
from ..unit import Unit
from .embeds import EncodedReference
from .preprocess import Preprocessed, Squares

# By feature name, each as the adapter takes it (encoders.spec.Feature), float32 on the CPU
FeatureMap = Mapping[str, Tensor]


class FeatureSource(Protocol):
    """Where image features come from: an encoder."""

    def encode(self, square: Image.Image, need: Need) -> Tensor:
        """The feature of an RGB square: pooled [1, E] or penultimate [1, T, W]."""

    def unconditional(self, need: Need) -> Tensor:
        """The same feature of no picture: zeros, or zero pixels encoded."""

    def levels(self, values: Tensor, need: Need) -> Mapping[str, Tensor]:
        """The features pooled and levels of RGB values [1, 3, H, W] in 0..1."""

    def side(self, need: Need) -> int:
        """Side of the encoder's square, pixels."""

    def check(self, need: Need) -> None:
        """Raises EncoderError if the encoder is not there."""

    def identity(self, need: Need) -> Hashable:
        """Equal squares have equal features under an equal identity."""

    def named(self, need: Need) -> Need:
        """The need with its encoder's name, where that can be told."""


@dataclass(frozen=True)
class Features:
    """Of one unit. references: in its order; unconditional: of the unconditional side. Computed when they are
    needed."""

    references: tuple[Lazy[FeatureMap], ...]
    unconditional: Lazy[FeatureMap]


class FeatureCache(Cache[FeatureMap]):
    """Features up to a number of bytes."""

    def __init__(self, limit: Callable[[], int]) -> None:
        super().__init__(limit, lambda features: sum(part.numel() * part.element_size() for part in features.values()))


def encode(preprocessed: Mapping[Need, Preprocessed], source: FeatureSource, cache: Cache[FeatureMap]) -> Features:
    """The features that an adapter takes. preprocessed: for each of its needs. Raises EncoderError, and FileError for
    embeds that the adapter does not take."""
    first = next(iter(preprocessed.values()))
    references = [
        _saved(reference, tuple(preprocessed))
        if isinstance(reference, EncodedReference)
        else _together([_feature(each.references[i], need, source, cache) for need, each in preprocessed.items()])
        for i, reference in enumerate(first.references)
    ]
    sides = [_unconditional(each, need, source, cache, references[0]) for need, each in preprocessed.items()]
    return Features(tuple(references), _together(sides))


def check_noise(unit: Unit, first: Preprocessed) -> None:
    """Raises UnitError for noise where there is no picture to fade."""
    if unit.noise and not first.unconditional:
        raise UnitError("noise", unit.noise, "0, or negative references: saved embeds hold no picture to fade")


def _saved(reference: EncodedReference, needs: tuple[Need, ...]) -> Lazy[FeatureMap]:
    features = reference.for_needs(needs)
    return Lazy(reference.key, lambda: features)


def _feature(
    squares: Squares | EncodedReference, need: Need, source: FeatureSource, cache: Cache[FeatureMap]
) -> Lazy[FeatureMap]:
    assert not isinstance(squares, EncodedReference)
    key = (need.feature, source.identity(need), squares.key)
    return Lazy(key, lambda: {need.feature: _encoded(squares, need, source)}, cache)


def _encoded(squares: Squares, need: Need, source: FeatureSource) -> Tensor:
    tiles = squares()
    features = [source.encode(tile.image, need) for tile in tiles]
    return features[0] if len(tiles) == 1 else merged(features, [(tile.left, tile.top) for tile in tiles])


def _unconditional(
    preprocessed: Preprocessed,
    need: Need,
    source: FeatureSource,
    cache: Cache[FeatureMap],
    first: Lazy[FeatureMap] | None,
) -> Lazy[FeatureMap]:
    """The mean over the unconditional pictures; without any, of no picture. first: of the first reference."""
    if preprocessed.unconditional:
        parts = [_feature(squares, need, source, cache) for squares in preprocessed.unconditional]
        key = ("mean", *(part.key for part in parts))
        return Lazy(key, lambda: {need.feature: _mean(need.feature, [part()[need.feature] for part in parts])})
    saved = [part for part in preprocessed.references if isinstance(part, EncodedReference)]
    if len(saved) == len(preprocessed.references) and need.feature in saved[0].unconditional:
        empty: FeatureMap = {need.feature: saved[0].unconditional[need.feature]}
        return Lazy(("no picture", saved[0].key), lambda: empty)
    if need.feature == "levels" and first is not None:  # as many zeros as the encoder has tokens
        like, name = first, need.feature
        return Lazy(("zeros", name, like.key), lambda: {name: torch.zeros_like(like()[name])})
    if need.feature in ZERO_FEATURES:  # zeros, for which no encoder has to be there
        return Lazy(("zeros", need.feature, need.width), lambda: {need.feature: source.unconditional(need)})
    key = (need.feature, source.identity(need), "no picture")
    return Lazy(key, lambda: {need.feature: source.unconditional(need)}, cache)


def _mean(name: str, features: Sequence[Tensor]) -> Tensor:
    return as_long(name, torch.stack(list(features)).mean(0))


def as_long(name: str, mixed: Tensor) -> Tensor:
    """A mix of features of this name, as long as one of them: the adapter knows only embeddings of length 1."""
    return F.normalize(mixed, dim=-1) if name == "face" else mixed


def no_picture(
    preprocessed: Mapping[Need, Preprocessed], source: FeatureSource, cache: Cache[FeatureMap]
) -> FeatureMap:
    """The features of no picture, as embeds keep them: without those that are zeros."""
    found: dict[str, Tensor] = {}
    for need, each in preprocessed.items():
        if need.feature not in ZERO_FEATURES:
            found.update(_unconditional(Preprocessed(each.references), need, source, cache, None)())
    return found


def _together(parts: Sequence[Lazy[FeatureMap]]) -> Lazy[FeatureMap]:
    """The features of several needs as one mapping."""
    if len(parts) == 1:
        return parts[0]
    return Lazy(tuple(part.key for part in parts), lambda: {k: v for part in parts for k, v in part().items()})


def merged(features: Sequence[Tensor], places: Sequence[tuple[float, float]]) -> Tensor:
    """The features of tiles as one of the same shape. places: left and top edge of each, in sides of a tile.

    Pooled [1, E]: the mean. Penultimate [1, T, W]: the patches' tokens, a square grid behind the prefix tokens (CLIP:
    the class token), are laid side by side as the tiles are, averaged where tiles overlap, and averaged over the area
    to the size of one grid; of the prefix tokens the mean.
    """
    tiles = torch.cat(list(features))
    if tiles.dim() == 2:
        return tiles.mean(0, keepdim=True)
    side = isqrt(tiles.shape[1])
    prefix = tiles.shape[1] - side * side
    whole = tiles[:, :prefix].mean(0, keepdim=True)
    grids = tiles[:, prefix:].transpose(1, 2).unflatten(-1, (side, side))  # [n, W, side, side]
    starts = _touching([(round(left * side), round(top * side)) for left, top in places], side)
    width, height = (max(start[i] for start in starts) + side for i in (0, 1))
    total, count = grids.new_zeros(grids.shape[1], height, width), grids.new_zeros(height, width)
    for grid, (x, y) in zip(grids, starts, strict=True):
        total[:, y : y + side, x : x + side] += grid
        count[y : y + side, x : x + side] += 1
    pooled = F.adaptive_avg_pool2d(total / count.clamp(min=1), side)
    return torch.cat([whole, pooled.flatten(1).T[None]], dim=1)


def _touching(starts: Sequence[tuple[int, int]], side: int) -> list[tuple[int, int]]:
    """Left and top of tiles, moved together where there is a gap between neighbours: of a picture that is much longer
    than its tiles reach, the gaps would make a canvas of any size."""
    moved: list[dict[int, int]] = []
    for axis in (0, 1):
        at, before, places = 0, None, {}
        for start in sorted({one[axis] for one in starts}):
            at = start if before is None else at + min(start - before, side)
            before = places[start] = start
            places[start] = at
        moved.append(places)
    return [(moved[0][x], moved[1][y]) for x, y in starts]
