"""Muon: each weight matrix is updated by its orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io/
posts/muon). From nothing and on few pictures it is well ahead of AdamW: README.md beside this file has the numbers.
torch has a Muon since 2.9, without support for convolution kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTUM, DECAY = 0.95, 0.01
# Coefficients of the quintic iteration that brings all singular values to between 0.7 and 1.2
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonal(weight: Tensor) -> Tensor:
    """Approximates U V^T of the singular value decomposition of ``weight`` [out, ...], flattened to [out, rest].

    Each iteration multiplies the matrix from the left by a polynomial of its Gram matrix, which that polynomial turns
    into the next one's: where the matrix is long, only the small Gram matrices are iterated.
    """
    matrix = weight.reshape(len(weight), -1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    size, length = x.shape
    if length < 2.5 * size:
        for _ in range(ITERATIONS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        gram, product = x @ x.T, torch.eye(size)
        for _ in range(ITERATIONS):
            factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal().add_(a)
            product, gram = factor @ product, factor @ gram @ factor
        x = product @ x
    return (x.T if tall else x).reshape(weight.shape)


class Muon(torch.optim.Optimizer):
    """For weights with two or more dimensions; a kernel's input channels and positions are flattened into one.

    Under torchrun, where all processes have the same gradients, each computes the steps of its share of the weights.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nesterov momentum; decoupled weight decay, as in AdamW."""
        rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            steps = torch.zeros(sum(weight.numel() for weight in weights))
            # Largest first, round-robin, to balance the processes
            order = sorted(range(len(weights)), key=lambda n: -weights[n].numel())
            mine = set(order[rank::count])
            for n, (weight, step) in enumerate(zip(weights, self._parts(steps, weights), strict=True)):
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                if n in mine:
                    step.copy_(orthogonal(weight.grad.lerp(momentum, MOMENTUM)))
            if count > 1:
                dist.all_reduce(steps)
            for weight, step in zip(weights, self._parts(steps, weights), strict=True):
                scale = max(1.0, len(weight) / weight[0].numel()) ** 0.5
                weight.mul_(1 - group["lr"] * DECAY).add_(step, alpha=-group["lr"] * scale)

    @staticmethod
    def _parts(flat: Tensor, weights: list[Tensor]) -> list[Tensor]:
        return [
            part.view(weight.shape)
            for part, weight in zip(flat.split([w.numel() for w in weights]), weights, strict=True)
        ]
