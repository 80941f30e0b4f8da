"""PuLID's attention, stated anew from ToTheBeginning/PuLID's attention_processor.py, head by head and without the
package's code: what goes into to_out of one cross-attention layer."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax(QKᵀ/√d)·V of [B, N, C] and [B, T, C]."""
    parts = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        parts.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return torch.cat(parts, -1)


def pulid(
    query: Tensor,
    own: Tensor,
    tokens: Tensor,
    to_k: Tensor,
    to_v: Tensor,
    heads: int,
    mode: str,
    zeros: int,
    scale: float,
) -> Tensor:
    """own: Z [B, N, C]; tokens [B, T, context]; to_k, to_v [C, context]."""
    tokens = torch.cat([tokens, torch.zeros(tokens.shape[0], zeros, tokens.shape[2])], 1)
    key, value = tokens @ to_k.T, tokens @ to_v.T
    face = attention(query, key, value, heads)
    if mode == "off":
        return own + scale * face
    shared = torch.zeros_like(own)
    for row in range(own.shape[0]):
        for channel in range(own.shape[2]):
            z, t = own[row, :, channel], face[row, :, channel]
            shared[row, :, channel] = (z @ t) / (z @ z) * z
    if mode == "ortho":
        return own + scale * (face - shared)
    looked_at = [
        (q @ k.mT).softmax(-1)[:, :, :5].sum(-1)
        for q, k in zip(query.chunk(heads, -1), key.chunk(heads, -1), strict=True)
    ]
    share = torch.stack(looked_at).mean(0)[:, :, None]
    return own + scale * (face + (share - 1) * shared)
