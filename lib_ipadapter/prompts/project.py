"""Stage 5, project: features to image tokens. A projection is computed once and cached by its features and adapter."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..cache import Cache, Lazy
from .combine import Combined
from .encode import FeatureMap


@dataclass(frozen=True)
class Tokens:
    """cond, uncond: [1, T, context] float32; weights: [T], the scale of each token's V'; key: equal keys mean equal
    tokens and weights."""

    cond: Tensor
    uncond: Tensor
    weights: Tensor
    key: Hashable


class TokenCache(Cache[Tensor]):
    """Image tokens up to a number of bytes."""

    def __init__(self, limit: Callable[[], int]) -> None:
        super().__init__(limit, lambda tokens: tokens.numel() * tokens.element_size())


def project(combined: Combined, adapter: Adapter, cache: Cache[Tensor], shortcut: float = 1.0) -> Tokens:
    """The image tokens. shortcut: of kinds that have one.

    The unconditional ones are repeated for each of several references, so that one attention serves cond and uncond
    rows: attention over copies is attention over one, here with the mean weight.
    """

    own = (shortcut,) if adapter.spec.shortcut else ()
    whose = (adapter.key, *own)

    def tokens(features: Lazy[FeatureMap]) -> Tensor:
        return cache.get((whose, features.key), lambda: adapter.tokens(features(), *own))

    conds = [tokens(features) for features in combined.conds]
    # Of a further face, the first tokens only, if the adapter's authors have it so
    kept = [conds[0].shape[1], *(adapter.spec.further or each.shape[1] for each in conds[1:])]
    cond = torch.cat([each[:, :n] for each, n in zip(conds, kept, strict=True)], dim=1)
    nothing = tokens(combined.uncond)
    uncond = torch.cat([nothing[:, :n] for n in kept], dim=1) if len(kept) > 1 else nothing
    weights = torch.tensor(combined.weights).repeat_interleave(torch.tensor(kept))
    key = (whose, *(features.key for features in combined.conds), combined.weights, combined.uncond.key)
    return Tokens(cond, uncond, weights, key)
