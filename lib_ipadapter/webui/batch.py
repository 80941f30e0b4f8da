"""Which picture of the batch a row of a denoiser step is of."""

from __future__ import annotations

from typing import Any

from ..errors import RowsError


def pictures_of(p: Any, params: Any, needed: bool) -> list[int]:
    """The picture's place in the batch for each row: first the cond rows, several for a picture whose prompts are
    joined by AND, then the uncond rows, all pictures again and again (an edit model: twice). ``params`` are
    CFGDenoiserParams. Where it cannot be told: RowsError if it is ``needed``, else []."""
    cond, batch, rows = params.text_cond.shape[0], params.text_uncond.shape[0], params.x.shape[0]
    counts = [len(parts) for parts in p.get_conds()[0].batch]
    if len(counts) != batch or sum(counts) != cond:
        if not needed:
            return []
        raise RowsError(
            f"{cond} rows of {len(counts)} prompts in a batch of {batch}: another extension rearranges the prompts, so "
            "which picture a row is of cannot be told. Disable it, or do without references in turn and masks on tiles"
        )
    return [picture for picture, count in enumerate(counts) for _ in range(count)] + [
        row % batch for row in range(rows - cond)
    ]
