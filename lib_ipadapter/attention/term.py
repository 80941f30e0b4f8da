"""The image branch of decoupled cross-attention: pure tensors.

arXiv 2308.06721, eq. 5: Z' = Softmax(QKᵀ/√d)·V + λ·Softmax(QK'ᵀ/√d)·V'. The second term is computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.precision import without_autocast

Merge = Callable[[Tensor, Tensor], Tensor]  # (Z, T) to what is added to Z, each [B, N, C]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads·d] to [B, heads, N, d], a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project(tokens: Tensor, weight: Tensor, heads: int, like: Tensor) -> Tensor:
    """K' or V' [S, heads, T, d] of ``tokens`` [S, T, context] by ``weight`` [heads·d, context].

    Multiplied in float32, with autocast off, then cast to the dtype of ``like`` (the query) on its device. The dtype of
    the weights says nothing about the model's: fp8 storage, manual casts and lowvram differ.
    """
    with without_autocast(like.device):
        weight = weight.to(like.device).float()
        # By pairs (cond, uncond): a kernel's rounding depends on the size, and other pictures must not matter.
        pairs = tokens.to(like.device, torch.float32).split(2)
        out = torch.cat([F.linear(pair, weight) for pair in pairs])
    return split_heads(out, heads).to(like.dtype).contiguous()


def fill_vector(x: Tensor) -> Tensor:
    """K' or V' [S, heads, T, d] with few tokens repeated to 16, on the CPU.

    Softmax attention over copies of the tokens is attention over the tokens, and PyTorch's CPU kernel takes twice as
    long for 4 keys as for 16, which fill its vectors (benchmarks/attention.py).
    """
    few = x.shape[2]
    return x.repeat(1, 1, 16 // few, 1) if x.device.type == "cpu" and few < 16 and 16 % few == 0 else x


def image_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax(QK'ᵀ/√d)·V' [B, N, heads·d] of query [B, N, heads·d] and key, value [B, heads, T, d].

    The caller multiplies ``value`` by the weight.
    """
    out = F.scaled_dot_product_attention(split_heads(query, key.shape[1]), key, value)
    return out.transpose(1, 2).flatten(2)


def add_term(hidden: Tensor, term: Tensor) -> Tensor:
    """hidden + term [B, N, C], in hidden's dtype.

    ``hidden`` belongs to the host and is not changed. ``term`` is ours: the sum is written into it, which saves a third
    buffer. Autograd needs the plain sum.
    """
    if term.dtype != hidden.dtype or term.requires_grad or hidden.requires_grad:
        return (hidden + term).to(hidden.dtype)
    return term.add_(hidden)


class Term(NamedTuple):
    """What an image prompt adds to a layer: T [B, N, C], which may be overwritten; or, with ``merge``, what that makes
    of the layer's own output Z [B, N, C] and T."""

    value: Tensor
    merge: Merge | None = None
