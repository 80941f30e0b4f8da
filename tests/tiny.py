"""A UNet of the right names and nothing else, and a fake adapter for it: the smallest thing to hook."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_ipadapter.adapters.variant import VariantSpec
from lib_ipadapter.attention.layers import Layer, cross_attention_layers
from lib_ipadapter.attention.session import ImagePrompt, Timing

CONTEXT = 24


class Attention(nn.Module):
    """Plain multi-head attention as ldm lays it out."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self- and cross-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, CONTEXT, heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(x)
        return x + self.attn2(x, context)


class UNet(nn.Module):
    """Blocks named as in ldm, in ldm's order (input, middle, output)."""

    def __init__(self, width: int = 16, heads: int = 2, per_part: tuple[int, int, int] = (2, 1, 3)) -> None:
        super().__init__()
        n_in, n_mid, n_out = per_part
        self.input_blocks = nn.ModuleList(Block(width, heads) for _ in range(n_in))
        self.middle_block = nn.ModuleList(Block(width, heads) for _ in range(n_mid))
        self.output_blocks = nn.ModuleList(Block(width, heads) for _ in range(n_out))

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        for block in [*self.input_blocks, *self.middle_block, *self.output_blocks]:
            x = block(x, context)
        return x


class FakeAdapter:
    """The weights of an adapter, without a file."""

    def __init__(self, unet: nn.Module, seed: int = 0, rank: int = 0) -> None:
        layers = cross_attention_layers(unet)
        generator = torch.Generator().manual_seed(seed)
        self.path = Path("fake.safetensors")
        self.spec = VariantSpec(
            variant="base",
            label="base / light",
            base="custom",
            feature="pooled",
            feature_width=8,
            encoder="tiny",
            tokens=4,
            context=layers[0].context,
            widths=tuple(layer.width for layer in layers),
            lora_rank=rank,
        )
        self.weights_key = ("fake", seed)
        self._lora = lora_of(layers, rank, generator) if rank else {}
        self._weights = [
            tuple(torch.randn(layer.width, layer.context, generator=generator) / layer.context**0.5 for _ in range(2))
            for layer in layers
        ]

    def weights(self, layer: int) -> tuple[Tensor, Tensor]:
        key, value = self._weights[layer]
        return key, value

    def lora(self) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        return self._lora


def linear_of(layer: Layer, number: int, target: str) -> nn.Linear:
    """The projection of the layer, or of the self-attention beside it."""
    module = layer.module if number % 2 else layer.self_attention
    return module.to_out[0] if target == "to_out" else getattr(module, target)


def lora_of(layers: list[Layer], rank: int, generator: torch.Generator) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """A random LoRA on every projection, by layer number and name."""
    found = {}
    for layer in layers:
        for number in (layer.number - 1, layer.number):
            for target in ("to_q", "to_k", "to_v", "to_out"):
                linear = linear_of(layer, number, target)
                down = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
                found[number, target] = down, 0.3 * torch.randn(linear.out_features, rank, generator=generator)
    return found


def prompt(unet: nn.Module, seed: int = 0, tokens: int = 4, **fields: object) -> ImagePrompt:
    """A random image prompt for ``unet``; fields as ImagePrompt's and Timing's."""
    timing = {name: fields.pop(name) for name in ("start", "end", "curve", "first", "hires") if name in fields}
    adapter = FakeAdapter(unet, seed, int(fields.pop("rank", 0)))  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(seed + 100)
    values: dict[str, object] = {
        "adapter": adapter,
        "tokens": torch.randn(2, tokens, adapter.spec.context, generator=generator),
        "token_weights": torch.ones(tokens),
        "timing": Timing(**timing),  # type: ignore[arg-type]
    }
    return ImagePrompt(**{**values, **fields})  # type: ignore[arg-type]


def inputs(rows: int, length: int = 9, width: int = 16, text: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(hidden states [rows, length, width], text tokens [rows, text, CONTEXT])."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, length, width, generator=generator),
        torch.randn(rows, text, CONTEXT, generator=generator),
    )
