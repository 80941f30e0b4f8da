"""Weights into a module that was built on the meta device, without a copy of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def assign(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The tensors of ``state`` become the module's parameters and buffers, none missing and none left over. Before
    torch 2.1 ``load_state_dict`` has no ``assign``. Raises RuntimeError for other keys."""
    expected = set(module.state_dict())
    if expected != set(state):
        raise RuntimeError(f"expected the keys {sorted(expected)[:6]}, got {sorted(state)[:6]}")
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        owner = module.get_submodule(path)
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(value, requires_grad=value.requires_grad)
        else:
            owner._buffers[name] = value
