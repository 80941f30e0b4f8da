"""The network: a UNet's input and middle blocks, with zero convolutions behind them (arXiv 2302.05543), built from the
shapes of a file. Modules have ldm's names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import Shapes

Context = tuple[Tensor, Tensor]  # what is attended to: tokens as keys see them, and as values do
_GROUPS = 32
_PERIOD = 10000.0


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """[B, width] float32 of timesteps [B]: cosines, then sines (arXiv 2006.11239)."""
    half = width // 2
    rates = torch.exp(-math.log(_PERIOD) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """[B, in, H, W] and the time's [B, emb] to [B, out, H, W]."""

    def __init__(self, inner: int, outer: int, emb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(_GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outer))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, outer), nn.SiLU(), nn.Identity(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """context: not used."""
        hidden = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(hidden)
        return out


class Downsample(nn.Module):
    """[B, C, H, W] to [B, C, H/2, W/2], rounded up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """emb, context: not used."""
        out: Tensor = self.op(x)
        return out


class Attention(nn.Module):
    """Multi-head attention of [B, N, C] to tokens [B, T, context]. ``heads`` is not in a file: the UNet tells."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.heads = 1
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, N, C]"""
        parts = (self.to_q(x), self.to_k(context[0]), self.to_v(context[1]))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        out: Tensor = self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class GEGLU(nn.Module):
    """[B, N, C] to [B, N, inner], gated by GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, inner]"""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """[B, N, C] to itself."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, inner), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C]"""
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Attention to the picture, to the context, and a feed-forward network."""

    def __init__(self, width: int, context: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1, self.attn2 = Attention(width, width), Attention(width, context)
        self.ff = FeedForward(width, inner)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, N, C]"""
        normed = self.norm1(x)
        x = x + self.attn1(normed, (normed, normed))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of [B, C, H, W]. linear: its projections are Linears (SD2, SDXL)."""

    def __init__(self, width: int, context: int, inner: int, depth: int, linear: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width, eps=1e-6)
        self.linear = linear
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, context, inner) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """emb: not used."""
        size, hidden = x.shape[-2:], self.norm(x)
        hidden = hidden if self.linear else self.proj_in(hidden)
        hidden = hidden.flatten(2).transpose(1, 2)
        hidden = self.proj_in(hidden) if self.linear else hidden
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        hidden = self.proj_out(hidden) if self.linear else hidden
        hidden = hidden.transpose(1, 2).unflatten(-1, size)
        return x + (hidden if self.linear else self.proj_out(hidden))


class ControlNet(nn.Module):
    """Latents to what is added to the UNet's input and middle blocks."""

    def __init__(self, shapes: Shapes) -> None:
        """shapes: by ldm's names. Raises KeyError for a key that is missing."""
        super().__init__()
        self.width, emb = shapes["input_blocks.0.0.weight"][0], shapes["time_embed.0.weight"][0]
        self.channels = shapes["input_blocks.0.0.weight"][1]
        self.time_embed = nn.Sequential(nn.Linear(self.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb: nn.Module | None = None
        if (label := shapes.get("label_emb.0.0.weight")) is not None:
            self.label_emb = nn.Sequential(nn.Sequential(nn.Linear(label[1], emb), nn.SiLU(), nn.Linear(emb, emb)))
        count = sum(bool(re.fullmatch(r"zero_convs\.\d+\.0\.weight", key)) for key in shapes)
        self.input_blocks = nn.ModuleList(_block(shapes, f"input_blocks.{i}") for i in range(count))
        self.zero_convs = nn.ModuleList(_zero(shapes, f"zero_convs.{i}.0.weight") for i in range(count))
        self.middle_block = _block(shapes, "middle_block")
        self.middle_block_out = _zero(shapes, "middle_block_out.0.weight")
        self.input_hint_block = _hint(shapes)

    def with_heads(self, heads: Sequence[int]) -> None:
        """heads: of its cross-attention layers in the order of the blocks; self-attention has as many."""
        blocks = [module for module in self.modules() if isinstance(module, TransformerBlock)]
        for block, count in zip(blocks, heads, strict=True):
            block.attn1.heads = block.attn2.heads = count

    @torch.no_grad()
    def fits_together(self, context: int, label: int) -> bool:
        """Whether each part takes what the one before it gives, tried without values (on the meta device). context,
        label: widths of its tokens, and of SDXL's label or 0."""
        meta = torch.device("meta")
        latents, pixels = (torch.empty(1, n, side, side, device=meta) for n, side in ((self.channels, 8), (3, 64)))
        tokens, step = torch.empty(1, 1, context, device=meta), torch.empty(1, device=meta)
        try:
            hint = self.input_hint_block(pixels)
            self(latents, hint, step, tokens, torch.empty(1, label, device=meta) if label else None, tokens)
        except (RuntimeError, ValueError, IndexError):
            return False
        square = (zero.weight.shape[0] == zero.weight.shape[1] for (zero,) in (*self.zero_convs, self.middle_block_out))
        return hint.shape == (1, self.width, 8, 8) and all(square)

    def forward(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, label: Tensor | None, values: Tensor
    ) -> list[Tensor]:
        """x: latents [B, channels, H, W]; hint: ``input_hint_block`` of the picture [B or 1, width, H, W]; timesteps:
        [B]; context: tokens [B, T, context]; label: [B, label] of SDXL; values: the tokens as values are made of them,
        each times its weight. One [B, C, h, w] for each input block, then the middle block's."""
        emb = self.time_embed(timestep_embedding(timesteps, self.width).to(x.dtype))
        if self.label_emb is not None:
            assert label is not None
            emb = emb + self.label_emb(label.to(x.dtype))
        found = []
        for i, (block, zero) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            x = _run(block, x, emb, (context, values))
            x = x + hint if i == 0 else x
            found.append(zero(x))
        return [*found, self.middle_block_out(_run(self.middle_block, x, emb, (context, values)))]


def _run(block: nn.Module, x: Tensor, emb: Tensor, context: Context) -> Tensor:
    for part in block.children():
        x = part(x) if isinstance(part, nn.Conv2d) else part(x, emb, context)
    return x


def _block(shapes: Shapes, prefix: str) -> nn.Sequential:
    """The parts of an input block or of the middle block, by their keys."""
    parts: list[nn.Module] = []
    while (made := _part(shapes, f"{prefix}.{len(parts)}.")) is not None:
        parts.append(made)
    if not parts:
        raise KeyError(f"{prefix}.0")
    return nn.Sequential(*parts)


def _part(shapes: Shapes, prefix: str) -> nn.Module | None:
    if f"{prefix}weight" in shapes:
        outer, inner, side, _ = shapes[f"{prefix}weight"]
        return nn.Conv2d(inner, outer, side, padding=side // 2)
    if f"{prefix}op.weight" in shapes:
        return Downsample(shapes[f"{prefix}op.weight"][0])
    if f"{prefix}in_layers.2.weight" in shapes:
        outer, inner = shapes[f"{prefix}in_layers.2.weight"][:2]
        return ResBlock(inner, outer, shapes[f"{prefix}emb_layers.1.weight"][1])
    if f"{prefix}proj_in.weight" in shapes:
        projection, blocks = shapes[f"{prefix}proj_in.weight"], f"{prefix}transformer_blocks."
        depth = sum(bool(re.fullmatch(rf"{re.escape(blocks)}\d+\.norm1\.weight", key)) for key in shapes)
        context = shapes[f"{blocks}0.attn2.to_k.weight"][1]
        inner = shapes[f"{blocks}0.ff.net.2.weight"][1]
        return SpatialTransformer(projection[0], context, inner, depth, len(projection) == 2)
    return None


def _zero(shapes: Shapes, key: str) -> nn.Sequential:
    outer, inner = shapes[key][:2]
    return nn.Sequential(nn.Conv2d(inner, outer, 1))


def _hint(shapes: Shapes) -> nn.Sequential:
    """Convolutions with SiLU between them; the third, fifth and seventh of eight halve the picture."""
    numbers = sorted(
        int(match[1]) for key in shapes if (match := re.fullmatch(r"input_hint_block\.(\d+)\.weight", key))
    )
    layers: list[nn.Module] = []
    for number in numbers:
        outer, inner = shapes[f"input_hint_block.{number}.weight"][:2]
        halves = number % 4 == 0 and 0 < number < numbers[-1]
        layers += [nn.SiLU()] if layers else []
        layers.append(nn.Conv2d(inner, outer, 3, stride=2 if halves else 1, padding=1))
    return nn.Sequential(*layers)
