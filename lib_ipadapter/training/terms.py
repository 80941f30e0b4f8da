"""The image term while training: K' and V' projected at each call, with gradients.

Hooks and attention are those of a generation's Session; only the source of K', V' differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..attention.layers import Layer
from ..attention.region import Size
from ..attention.term import Term, image_attention, split_heads
from ..errors import RowsError
from .adapter import TrainableAdapter


class TrainLoRA:
    """``lowrank.Addition`` over parameters, which acts as long as ``terms`` do, on all rows."""

    def __init__(self, terms: TrainTerms, name: str) -> None:
        self._terms, self._name = terms, name

    def added(self, x: Tensor, output: Tensor, grid: Size | None) -> Tensor | None:
        """``Addition.added``, with gradients."""
        if self._terms.tokens is None:
            return None
        down, up = (part[self._name].to(output.dtype) for part in (self._terms.adapter.down, self._terms.adapter.up))
        return output + F.linear(F.linear(x.to(output.dtype), down), up)


class TrainTerms:
    """``hooks.Terms`` over parameters. ``tokens`` [B, T, context] belong to the rows of the next UNet call,
    and stay until its gradients are computed: gradient checkpointing asks for the terms again."""

    def __init__(self, adapter: TrainableAdapter) -> None:
        self.adapter = adapter
        self.tokens: Tensor | None = None

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Hooks: the UNet is called."""
        if self.tokens is not None and len(self.tokens) != len(latents):
            raise RowsError(
                f"the UNet was called with {len(latents)} rows, expected {len(self.tokens)}, one for each picture"
            )

    def enter(self, hidden: Tensor, context: Tensor | None) -> None:
        """Hooks: a pass begins; with gradient checkpointing, again."""

    def terms(self, layer: Layer, hidden: Tensor, query: Tensor, grid: Size | None) -> Sequence[Term]:
        """Hooks: Softmax(QK'ᵀ/√d)·V' [B, N, width]; λ = 1 while training (arXiv 2308.06721, 3.2.2)."""
        if self.tokens is None:
            return ()
        key, value = (
            split_heads(F.linear(self.tokens.to(weight.dtype), weight), layer.heads).to(query.dtype)
            for weight in (self.adapter.to_k[layer.position], self.adapter.to_v[layer.position])
        )
        return (Term(image_attention(query, key, value)),)
