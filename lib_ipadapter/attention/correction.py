"""PuLID's way to add a term: corrected against the text attention's own output Z (arXiv 2404.16022; ToTheBeginning/
PuLID, attention_processor.py, IDAttnProcessor2_0).

T is attention over the face's tokens and some tokens of zeros, which take their share of the softmax and give nothing.
proj = (Σ Z∘T / Σ Z∘Z)·Z, sums over the picture's positions, of each row and channel by itself.

- off: T
- ortho: T - proj
- ortho_v2: T + (a - 1)·proj; a, of each position: the mean over heads of what the first five tokens get of the softmax,
  whose logits Q·K' are not divided by √d there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoders.precision import without_autocast
from .term import Merge, split_heads

_FIRST = 5  # tokens whose attention a sums
_SCORES = 1 << 24  # of Q·K' at a time, float32: 64 MB


@dataclass(frozen=True)
class Correction:
    """mode: one of unit.pulid.MODES; zeros: tokens of zeros beside the face's."""

    mode: str
    zeros: int = 0

    def padded(self, x: Tensor) -> Tensor:
        """K' or V' [S, heads, T, d] with those of the tokens of zeros, which are zero."""
        return torch.nn.functional.pad(x, (0, 0, 0, self.zeros)) if self.zeros else x

    def merge(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Merge:
        """How the term of ``query`` [B, N, heads·d] on ``key`` [B, heads, T, d] is corrected. mask: [B or 1, N, 1],
        where the correction acts; its sums are over the whole picture all the same."""
        share = attended(query, key) if self.mode == "ortho_v2" else None

        def merged(hidden: Tensor, term: Tensor) -> Tensor:
            added = term if self.mode == "off" else corrected(hidden, term, share)
            return added if mask is None else added * mask

        return merged


def corrected(hidden: Tensor, term: Tensor, share: Tensor | None) -> Tensor:
    """T - proj, or T + (share - 1)·proj, float32, of Z and T [B, N, C] and share [B, N, 1]."""
    with without_autocast(hidden.device):
        hidden, term = hidden.float(), term.float()
        length = (hidden * hidden).sum(-2, keepdim=True)
        # Where Z is zero at all positions, its multiples are, too
        factor = (hidden * term).sum(-2, keepdim=True) / length.clamp(min=torch.finfo(torch.float32).tiny)
        projection = factor * hidden
        return (projection.neg_() if share is None else projection.mul_(share - 1)).add_(term)


def attended(query: Tensor, key: Tensor) -> Tensor:
    """a [B, N, 1], float32, of query [B, N, heads·d] and key [B, heads, T, d]."""
    rows, heads, tokens, _ = key.shape
    at_a_time = max(1, _SCORES // (rows * heads * tokens))
    with without_autocast(query.device):
        wide = key.float().transpose(-1, -2)
        parts = [
            (split_heads(part, heads).float() @ wide).softmax(-1)[..., :_FIRST].sum(-1).mean(1)
            for part in query.split(at_a_time, dim=1)
        ]
    return torch.cat(parts, dim=1)[..., None]
