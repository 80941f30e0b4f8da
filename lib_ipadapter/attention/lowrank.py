"""Low-rank additions to the attention projections (LoRA, arXiv 2106.09685), such as FaceID adapters bring along.

A projection W of a layer then gives W·x + weight · up·down·x. Layers are numbered as in adapter files: 2i is attn1 and
2i + 1 is attn2 of the i-th transformer block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedModel
from .layers import Layer

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


@dataclass(frozen=True)
class LowRank:
    """down: [rank, in]; up: [out, rank]; weight: factor of the product."""

    down: Tensor
    up: Tensor
    weight: float = 1.0

    def of(self, x: Tensor) -> Tensor:
        """weight · up·down·x [..., out], in the dtype and on the device of x [..., in]."""
        down, up = (matrix.to(x.device, x.dtype) for matrix in (self.down, self.up))
        return F.linear(F.linear(x, down), up) * self.weight


Additions = Mapping[tuple[int, str], LowRank]  # by layer number and one of PROJECTIONS


def add_low_rank(layers: Sequence[Layer], additions: Additions) -> list[RemovableHandle]:
    """Registers the additions as forward hooks. Raises UnsupportedModel for a layer that the model has not, and then
    none is registered."""
    modules = {layer.number: layer.module for layer in layers}
    modules |= {layer.number - 1: layer.self_attention for layer in layers if layer.self_attention is not None}
    targets = [(_projection(modules, *place), addition) for place, addition in additions.items()]
    return [module.register_forward_hook(_hook(addition)) for module, addition in targets]


def _projection(modules: Mapping[int, Any], number: int, name: str) -> nn.Module:
    if number not in modules or name not in PROJECTIONS:
        raise UnsupportedModel(f"a low-rank addition is for {number}.{name}, which the model has not")
    module: nn.Module = getattr(modules[number], name)
    return module[0] if isinstance(module, nn.Sequential | nn.ModuleList) else module


def _hook(addition: LowRank) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + addition.of(args[0])

    return hook
