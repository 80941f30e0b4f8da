"""Stage 6: a unit's tokens to its ImagePrompt; and stage 7, prompts that take turns to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..adapters.adapter import Adapter
from ..adapters.variant import VariantSpec
from ..attention.correction import Correction
from ..attention.region import Region
from ..attention.session import COND, UNCOND, ImagePrompt, Timing
from ..errors import UnitError
from ..unit import Unit, pulid
from ..unit.weights import Curve, LayerRule, curve_points, layers_table
from .project import Tokens


def image_prompt(unit: Unit, adapter: Adapter, tokens: Tokens, region: Region | None = None) -> ImagePrompt:
    """The image prompt of ``unit``, acting in ``region`` (None: everywhere)."""
    rule, timing = prompt_fields(unit)
    return ImagePrompt(
        adapter,
        torch.cat([tokens.cond, tokens.uncond]),
        tokens.weights,
        unit.weight,
        rule,
        timing,
        region,
        unit.scaling,
        unit.model,
        maps_of(unit, adapter.spec.corrected),
        correction_of(unit, adapter.spec),
        tokens.key,
        unit.lora,
    )


def correction_of(unit: Unit, spec: VariantSpec) -> Correction | None:
    """How PuLID's term is added; None for other kinds."""
    if not spec.corrected:
        return None
    default = "v1.1" if spec.joint else "fidelity"
    return Correction(*pulid.resolved(unit.pulid, unit.pulid_mode, unit.zero_tokens, default))


def maps_of(unit: Unit, together: bool = False) -> int:
    """How many heat maps show where the unit acts: one for each reference that keeps its tokens. together: its
    references have no tokens of their own, or not as many each."""
    if not unit.maps:
        return 0
    return len(unit.images) if unit.combine == "concat" and not together else 1


def prompt_fields(unit: Unit) -> tuple[LayerRule, Timing]:
    """The unit's weight over layers, and over steps."""
    rule = LayerRule(unit.weight_type, unit.composition, layers_table(unit.layers))
    timing = Timing(
        unit.start,
        unit.end,
        Curve(curve_points(unit.curve), unit.interpolation),
        first=0.0 if unit.passes == "hires" else 1.0,
        hires=0.0 if unit.passes == "first" else unit.hires_factor,
    )
    return rule, timing


def in_turn(prompts: Sequence[ImagePrompt]) -> ImagePrompt:
    """One prompt of several that differ in their tokens alone: a pair of token sets for each picture. Raises
    UnitError."""
    if len(prompts) == 1:
        return prompts[0]
    counts = sorted({prompt.tokens.shape[1] for prompt in prompts})
    if len(counts) > 1:
        raise UnitError(
            "distribute",
            "one per picture",
            f"references of as many tokens each, got {' and '.join(map(str, counts))}: embeds of several pictures "
            "have more than one picture. Set combine to average",
        )
    tokens = torch.cat([prompt.tokens for prompt in prompts])
    weights = torch.stack([prompt.token_weights for prompt in prompts for _ in (COND, UNCOND)])
    keys = [prompt.key for prompt in prompts]
    key = None if None in keys else ("in turn", *keys)
    return replace(prompts[0], tokens=tokens, token_weights=weights, key=key)
