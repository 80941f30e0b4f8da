"""What is on the device while a training runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def held(tensors: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of those that are on the device, each counted once."""
    own = {t.data_ptr() or id(t): t for t in tensors if t.device.type == device.type}
    return sum(t.numel() * t.element_size() for t in own.values())


def resident(models: Mapping[str, nn.Module], device: torch.device) -> dict[str, int]:
    """Bytes on the device of each model's parameters and buffers."""
    return {name: held([*model.parameters(), *model.buffers()], device) for name, model in models.items()}


def described(sizes: Mapping[str, int]) -> str:
    """In words, the largest first."""
    parts = sorted(((size, name) for name, size in sizes.items() if size), reverse=True)
    return ", ".join(f"{name} {size / 2**20:.0f} MiB" for size, name in parts)
