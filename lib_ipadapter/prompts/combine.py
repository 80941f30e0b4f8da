"""Stage 4, combine: the features of several references to those that are projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache import Lazy
from ..errors import UnitError
from .encode import FeatureMap, Features, as_long


@dataclass(frozen=True)
class Combined:
    """conds: what is projected, side by side; weights: of each, a scale of its V'; uncond: of the unconditional
    side."""

    conds: tuple[Lazy[FeatureMap], ...]
    weights: tuple[float, ...]
    uncond: Lazy[FeatureMap]


def combine(how: str, features: Features, weights: Sequence[float], joint: bool = False) -> Combined:
    """concat: every reference keeps its tokens, and its V' is scaled by its weight. The others mix features to one.

    average: the weighted mean. norm average: the weighted mean of the directions, as long as the weighted mean of the
    lengths; lengths are those of a token's feature. add: the weighted sum. subtract: the first, minus the mean of the
    others, each times its weight. An embedding of a face that has length 1 has it again afterwards.

    joint: concat lays the features of the references side by side, for an adapter that makes one set of tokens of them.
    Raises UnitError for weights that differ from 1 then.
    """
    references, uncond = features.references, features.unconditional
    if how == "concat" and joint and len(references) > 1:
        return Combined((_side_by_side(references, weights),), (1.0,), uncond)
    if how == "concat":
        return Combined(references, tuple(weights), uncond)
    key = (how, tuple(weights), *(reference.key for reference in references))
    scales = torch.tensor(weights)

    def make() -> FeatureMap:
        parts = [reference() for reference in references]
        return {
            name: as_long(name, mixed(how, torch.stack([part[name] for part in parts]), scales)) for name in parts[0]
        }

    return Combined((Lazy(key, make),), (1.0,), uncond)


def _side_by_side(references: Sequence[Lazy[FeatureMap]], weights: Sequence[float]) -> Lazy[FeatureMap]:
    """Embeddings [1, E] of n references as [1, n, E], tokens [..., T, W] as [..., n·T, W]."""
    if set(weights) != {1.0}:
        raise UnitError(
            "images", list(weights), "weights of 1, since the adapter takes all faces at once; or combine average"
        )

    def make() -> FeatureMap:
        parts = [reference() for reference in references]
        return {
            name: torch.stack([part[name] for part in parts], 1)
            if parts[0][name].dim() == 2
            else torch.cat([part[name] for part in parts], -2)
            for name in parts[0]
        }

    return Lazy(("side by side", *(reference.key for reference in references)), make)


def mixed(how: str, features: Tensor, weights: Tensor) -> Tensor:
    """One feature [1, ...] of n: [n, 1, ...], weights [n]."""
    weights = weights.view(-1, *[1] * (features.dim() - 1)).to(features)
    if how == "add":
        return (weights * features).sum(0)
    if how == "subtract":
        weighted = weights * features
        return weighted[0] - weighted[1:].mean(0)
    fractions = weights / weights.sum()
    if how == "average":
        return (fractions * features).sum(0)
    lengths = features.norm(dim=-1, keepdim=True)
    directions = (fractions * features / lengths.clamp(min=1e-12)).sum(0)
    return F.normalize(directions, dim=-1) * (fractions * lengths).sum(0)
