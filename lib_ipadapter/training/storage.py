"""The frozen base in fewer bytes: weights of linear layers and convolutions are kept in bfloat16 or float8, and
converted as they are used, in the backward pass again.

So a layer's weight in full is there only while it is used. Norms, biases and embeddings stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ..errors import ModelError

DTYPES = {"bf16": "bfloat16", "fp8": "float8_e4m3fn"}


class _Linear(torch.autograd.Function):
    """F.linear that keeps the stored weight for its gradient, and none for the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


class _Conv2d(torch.autograd.Function):
    """F.conv2d, likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = x.shape, how
        return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        gradient = gradients[0]
        of_input = conv2d_input(ctx.shape, weight.to(gradient.dtype), gradient, *ctx.how)
        return of_input, None, None, None


def store(unet: nn.Module, storage: str) -> None:
    """Keeps the weights of ``unet`` as ``storage`` says; "auto" leaves them. Raises ModelError where torch has no such
    numbers."""
    if storage == "auto":
        return
    dtype = getattr(torch, DTYPES[storage], None)
    if dtype is None:
        raise ModelError(
            f"storage {storage}: torch {torch.__version__} has no {DTYPES[storage]}; use bf16, or torch 2.1"
        )
    for module in unet.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.numel() > 0:
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
            used = _linear(module) if isinstance(module, nn.Linear) else _conv(module)
            module.forward = used  # type: ignore[method-assign]


def _computed(x: Tensor) -> Tensor:
    """The input in autocast's dtype, where it is on: it does not see these functions."""
    if x.device.type == "cuda" and torch.is_autocast_enabled():
        return x.to(torch.get_autocast_gpu_dtype())
    if x.device.type == "cpu" and torch.is_autocast_cpu_enabled():
        return x.to(torch.get_autocast_cpu_dtype())
    return x


def _linear(module: nn.Linear) -> Any:
    def forward(x: Tensor) -> Tensor:
        return _Linear.apply(_computed(x), module.weight, module.bias)

    return forward


def _conv(module: nn.Conv2d) -> Any:
    how = (module.stride, module.padding, module.dilation, module.groups)

    def forward(x: Tensor) -> Tensor:
        return _Conv2d.apply(_computed(x), module.weight, module.bias, how)

    return forward
