"""Small random ControlNets: of ldm's layout for any UNet of it, and pictures that are handed to one."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

HINT = (16, 16, 32, 32, 48, 48, 64)  # of the hint's convolutions, published: 16, 16, 32, 32, 96, 96, 256


class Noise:
    """A hint of fixed random pixels, a different one for each seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def at(self, size, box):
        """Whole pictures only."""
        return np.random.default_rng(self.seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def ldm_control(unet: Mapping[str, Tensor], seed: int = 3, std: float = 0.05) -> dict[str, Tensor]:
    """The tensors of a ControlNet for a UNet with this ldm state: random, as strong as the UNet's own."""
    generator = torch.Generator().manual_seed(seed)

    def randomly(*shape: int) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    first = {k: v for k, v in unet.items() if k.startswith(("time_embed", "label_emb", "input_blocks", "middle_block"))}
    made = {key: value + value.std() * torch.randn(value.shape, generator=generator) for key, value in first.items()}
    width = unet["input_blocks.0.0.weight"].shape[0]
    made["input_blocks.0.0.weight"] = made["input_blocks.0.0.weight"][:, :4].contiguous()
    widths = [*HINT, width]
    for number, (outer, inner) in enumerate(zip(widths, [3, *widths], strict=False)):
        made[f"input_hint_block.{2 * number}.weight"] = 4 * randomly(outer, inner, 3, 3)
        made[f"input_hint_block.{2 * number}.bias"] = randomly(outer)
    blocks = 1 + max(int(key.split(".")[1]) for key in unet if key.startswith("input_blocks"))
    outputs = [("middle_block_out", _width(unet, "middle_block"))]
    outputs += [(f"zero_convs.{i}", _width(unet, f"input_blocks.{i}")) for i in range(blocks)]
    for name, channels in outputs:
        made[f"{name}.0.weight"] = randomly(channels, channels, 1, 1)
        made[f"{name}.0.bias"] = randomly(channels)
    return made


def _width(unet: Mapping[str, Tensor], block: str) -> int:
    """Channels that come out of a block."""
    pattern = rf"{re.escape(block)}\.0\.(weight|op\.weight|out_layers\.3\.weight)"
    return next(value.shape[0] for key, value in unet.items() if re.fullmatch(pattern, key))
