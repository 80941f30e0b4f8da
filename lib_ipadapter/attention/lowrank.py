"""Low-rank additions to the attention projections (LoRA, arXiv 2106.09685), such as FaceID adapters bring along.

A projection W of a layer then gives W·x + weight · up·down·x. Layers are numbered as in adapter files: 2i is attn1 and
2i + 1 is attn2 of the i-th transformer block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..encoders.precision import without_autocast
from ..errors import UnsupportedModel
from .layers import Layer
from .region import Size

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
Place = tuple[int, str]  # a layer's number and one of PROJECTIONS
Grids = Mapping[int, Size]  # height and width of a block's tokens, by the block's id


class Addition(Protocol):
    """Changes what a projection gives."""

    def added(self, x: Tensor, output: Tensor, grid: Size | None) -> Tensor | None:
        """What replaces the projection's output [B, N, out] of x [B, N, in]; None: it stays. grid: height and width of
        the block's tokens, None if not known."""


Additions = Mapping[Place, Addition]


@dataclass
class LowRank:
    """down: [rank, in]; up: [out, rank]; weight: factor of the product."""

    down: Tensor
    up: Tensor
    weight: float = 1.0
    _moved: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def of(self, x: Tensor, like: Tensor) -> Tensor:
        """up·down·x [..., out] of x [..., in], in the dtype and on the device of ``like``. The matrices stay there for
        the next call: a module's own dtype and device say nothing (fp8 storage, lowvram)."""
        moved = self._moved
        if moved is None or moved[0].dtype != like.dtype or moved[0].device != like.device:
            moved = self._moved = (self.down.to(like.device, like.dtype), self.up.to(like.device, like.dtype))
        with without_autocast(like.device):
            return F.linear(F.linear(x.to(like.dtype), moved[0]), moved[1])

    def added(self, x: Tensor, output: Tensor, grid: Size | None = None) -> Tensor:
        """output + weight · up·down·x"""
        return torch.add(output, self.of(x, output), alpha=self.weight)


def add_low_rank(layers: Sequence[Layer], additions: Additions, grids: Grids) -> list[RemovableHandle]:
    """Registers the additions as forward hooks. Raises UnsupportedModel for a layer that the model has not, and then
    none is registered."""
    modules = {layer.number: (layer.module, id(layer.block)) for layer in layers}
    modules |= {
        layer.number - 1: (layer.self_attention, id(layer.block))
        for layer in layers
        if layer.self_attention is not None
    }
    targets = [(*_projection(modules, *place), addition) for place, addition in additions.items()]
    return [module.register_forward_hook(_hook(addition, grids, block)) for module, block, addition in targets]


def _projection(modules: Mapping[int, tuple[Any, int]], number: int, name: str) -> tuple[nn.Module, int]:
    if number not in modules or name not in PROJECTIONS:
        raise UnsupportedModel(f"a low-rank addition is for {number}.{name}, which the model has not")
    attention, block = modules[number]
    module: nn.Module = getattr(attention, name)
    return module[0] if isinstance(module, nn.Sequential | nn.ModuleList) else module, block


def _hook(addition: Addition, grids: Grids, block: int) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return addition.added(args[0], output, grids.get(block))

    return hook
