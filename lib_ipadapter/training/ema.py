"""The exponential moving average of the adapter's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average = keep * average + (1 - keep) * model, after optimizer step ``step`` (counted from 0).

    keep is ``decay``, and less in the first steps: min(decay, (1 + step) / (10 + step)).
    """
    keep = min(decay, (1 + step) / (10 + step))
    for mean, new in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(new.to(mean.dtype), 1 - keep)
