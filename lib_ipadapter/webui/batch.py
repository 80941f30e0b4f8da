"""Which picture of the batch each row of a denoiser step is of."""

from __future__ import annotations

from typing import Any

import torch

from ..attention.rows import Row
from ..attention.traced import Content, identify
from ..errors import RowsError


def pictures_of(p: Any, params: Any, needed: bool) -> list[int]:
    """The index in the batch of each row's picture: first the cond rows, several for a picture whose prompts are joined
    by AND, then the uncond rows, one of each picture (an edit model: twice). ``params`` are CFGDenoiserParams. If it
    cannot be known: RowsError if it is ``needed``, else []."""
    cond, batch, rows = params.text_cond.shape[0], params.text_uncond.shape[0], params.x.shape[0]
    counts = [len(parts) for parts in p.get_conds()[0].batch]
    if len(counts) != batch or sum(counts) != cond:
        if not needed:
            return []
        raise RowsError(
            f"{cond} rows of {len(counts)} prompts in a batch of {batch}: another extension rearranges the prompts, so "
            "which picture a row is of is not known. Disable it, or use no references in turn and no masks on tiles"
        )
    in_order = [picture for picture, count in enumerate(counts) for _ in range(count)]
    return _by_latents(params.x, in_order, batch) + [row % batch for row in range(rows - cond)]


def _by_latents(x: torch.Tensor, in_order: list[int], batch: int) -> list[int]:
    """The pictures of the cond rows of x, by the uncond rows' latents behind them, where the order was changed. Raises
    RowsError."""
    cond, pictures = x[: len(in_order)], x[len(in_order) : len(in_order) + batch]
    if batch < 2 or torch.equal(cond, pictures[in_order]):
        return in_order
    rows = [Row(k, 2 * k) for k in range(batch)]
    return [row.place for row in identify(rows, Content(pictures), Content(cond), strict=True)]
