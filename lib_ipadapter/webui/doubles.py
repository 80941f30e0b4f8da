"""A LoRA that acts twice: inside a FaceID file, and again by a tag of the prompt, as its author publishes it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..adapters.lora import TARGETS
from ..attention.layers import cross_attention_layers
from ..attention.session import ImagePrompt
from ..unit import Unit

# Name and ``up`` [out, rank] of each LoRA that the host has loaded for a module, by the module's name in the UNet
Loaded = Callable[[str], Iterable[tuple[str, Tensor]]]
_ALIKE = 0.01  # relative difference of weights that were rounded to half precision


def twice(units: Iterable[tuple[int, Unit, ImagePrompt]], unet: nn.Module, loaded: Loaded) -> list[str]:
    """A remark for each unit whose LoRA the host has loaded, too. units: with their places, those that bring one."""
    remarks = []
    layer = cross_attention_layers(unet)[0]
    for index, unit, prompt in units:
        own = prompt.adapter.lora()[layer.number, TARGETS[0]][1]
        for name, up in loaded(f"{layer.name}.{TARGETS[0]}"):
            if up.shape == own.shape and _alike(up, own):
                remarks.append(
                    f"IP-Adapter unit {index + 1}: the LoRA {name} in the prompt is the one inside {unit.model}, so "
                    f"their strengths add up. Remove it from the prompt, or set the unit's LoRA strength to 0"
                )
    return remarks


def brings_lora(prompt: ImagePrompt) -> bool:
    """Whether the prompt's file brings a LoRA along that acts."""
    return bool(prompt.lora and prompt.weight and prompt.adapter.spec.lora_rank)


def _alike(one: Tensor, other: Tensor) -> bool:
    one, other = one.detach().to("cpu", torch.float32), other.to("cpu", torch.float32)
    return bool((one - other).norm() <= _ALIKE * other.norm())
