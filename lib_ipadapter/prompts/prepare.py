"""A unit and its adapter to an ImagePrompt: fit, encode, combine, project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.adapter import Adapter
from ..attention.region import Region
from ..attention.session import ImagePrompt, Timing
from ..unit import Unit
from ..unit.weights import Curve, LayerRule, curve_points, layers_table
from .features import FeatureSource, Pictures, cond_features, uncond_feature

__all__ = ["Pictures", "combine", "prepare", "prompt_fields"]


def prepare(
    unit: Unit, pictures: Pictures, adapter: Adapter, source: FeatureSource, region: Region | None = None
) -> ImagePrompt:
    """The image prompt of ``unit``, of its ``pictures``, acting in ``region``."""
    features = cond_features(unit, pictures, source, adapter.spec)
    unconditional = uncond_feature(unit, pictures, source, adapter.spec)
    weights = torch.tensor([reference.weight for reference in unit.images])
    cond, uncond, token_weights = combine(unit.combine, features, weights, unconditional, adapter)
    rule, timing = prompt_fields(unit)
    return ImagePrompt(
        adapter,
        torch.cat([cond, uncond]),
        token_weights,
        unit.weight,
        rule,
        timing,
        region,
        unit.scaling,
        unit.model,
        maps_of(unit),
    )


def maps_of(unit: Unit) -> int:
    """How many maps show where the unit acts: one for each reference whose tokens are its own."""
    return 0 if not unit.maps else len(unit.images) if unit.combine == "concat" else 1


def prompt_fields(unit: Unit) -> tuple[LayerRule, Timing]:
    """What the unit's fields say about layers and steps."""
    rule = LayerRule(unit.weight_type, unit.composition, layers_table(unit.layers))
    timing = Timing(
        unit.start,
        unit.end,
        Curve(curve_points(unit.curve), unit.interpolation),
        first=0.0 if unit.passes == "hires" else 1.0,
        hires=0.0 if unit.passes == "first" else unit.hires_factor,
    )
    return rule, timing


def combine(
    how: str, features: Sequence[Tensor], weights: Tensor, unconditional: Tensor, adapter: Adapter
) -> tuple[Tensor, Tensor, Tensor]:
    """(cond tokens [1, T, context], uncond tokens [1, T, context], weight of each token [T]).

    concat: the tokens of the n pictures side by side, V' of each scaled by the picture's weight. The
    unconditional tokens are repeated n times, so that one attention serves cond and uncond rows:
    attention over copies is attention over one, here with the mean weight.
    The others: the tokens of one feature. average: the weighted mean. norm average: the weighted mean of the
    directions, as long as the weighted mean of the lengths; lengths are those of a token's feature. add: the
    weighted sum. subtract: the first, minus the mean of the others, each times its weight.
    """
    if how != "concat":
        cond = adapter.tokens(_one(how, torch.stack(list(features)), weights))
        return cond, adapter.tokens(unconditional), torch.ones(cond.shape[1])
    cond = torch.cat([adapter.tokens(feature) for feature in features], dim=1)
    uncond = adapter.tokens(unconditional).repeat(1, len(features), 1)
    return cond, uncond, weights.repeat_interleave(cond.shape[1] // len(features))


def _one(how: str, features: Tensor, weights: Tensor) -> Tensor:
    """One feature [1, ...] of n: [n, 1, ...], weights [n]."""
    weights = weights.view(-1, *[1] * (features.dim() - 1)).to(features)
    if how == "add":
        return (weights * features).sum(0)
    if how == "subtract":
        weighted = weights * features
        return weighted[0] - weighted[1:].mean(0)
    shares = weights / weights.sum()
    if how == "average":
        return (shares * features).sum(0)
    lengths = features.norm(dim=-1, keepdim=True)
    directions = (shares * features / lengths.clamp(min=1e-12)).sum(0)
    return F.normalize(directions, dim=-1) * (shares * lengths).sum(0)
