"""Writes a random checkpoint of SDXL's real shape: python real_checkpoint_xl.py FILE. The UNet is stored in 8 bits
(float8_e4m3fn, 2.6 GB), the rest in half precision."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from real_checkpoint import AUTOENCODER, randomised
from safetensors.torch import save_file
from torch import Tensor

CHANNELS, TIME, CONTEXT, ADM = 320, 1280, 2048, 2816
DEPTHS = (0, 2, 10)  # transformer blocks at each level
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def linear(name: str, out: int, given: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, given)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def convolution(name: str, out: int, given: int, size: int = 3) -> Shapes:
    yield f"{name}.weight", (out, given, size, size)
    yield f"{name}.bias", (out,)


def residual(name: str, given: int, out: int) -> Shapes:
    yield from norm(f"{name}.in_layers.0", given)
    yield from convolution(f"{name}.in_layers.2", out, given)
    yield from linear(f"{name}.emb_layers.1", out, TIME)
    yield from norm(f"{name}.out_layers.0", out)
    yield from convolution(f"{name}.out_layers.3", out, out)
    if given != out:
        yield from convolution(f"{name}.skip_connection", out, given, 1)


def transformer(name: str, width: int, depth: int) -> Shapes:
    yield from norm(f"{name}.norm", width)
    yield from linear(f"{name}.proj_in", width, width)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, context in (("attn1", width), ("attn2", CONTEXT)):
            yield from linear(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from linear(f"{block}.{attention}.to_k", width, context, bias=False)
            yield from linear(f"{block}.{attention}.to_v", width, context, bias=False)
            yield from linear(f"{block}.{attention}.to_out.0", width, width)
        yield from linear(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from linear(f"{block}.ff.net.2", width, 4 * width)
        for n in (1, 2, 3):
            yield from norm(f"{block}.norm{n}", width)
    yield from linear(f"{name}.proj_out", width, width)


def unet() -> Shapes:
    """Names and shapes of sgm's UNetModel with SDXL's options."""
    for name, given in (("time_embed", CHANNELS), ("label_emb.0", ADM)):
        yield from linear(f"{name}.0", TIME, given)
        yield from linear(f"{name}.2", TIME, TIME)
    yield from convolution("input_blocks.0.0", CHANNELS, 4)
    kept, width, block = [CHANNELS], CHANNELS, 1
    for level, depth in enumerate(DEPTHS):
        out = CHANNELS * 2**level
        for _ in range(2):
            yield from residual(f"input_blocks.{block}.0", width, out)
            if depth:
                yield from transformer(f"input_blocks.{block}.1", out, depth)
            width = out
            kept.append(width)
            block += 1
        if level < 2:
            yield from convolution(f"input_blocks.{block}.0.op", width, width)
            kept.append(width)
            block += 1
    yield from residual("middle_block.0", width, width)
    yield from transformer("middle_block.1", width, DEPTHS[-1])
    yield from residual("middle_block.2", width, width)
    block = 0
    for level in (2, 1, 0):
        out = CHANNELS * 2**level
        for i in range(3):
            yield from residual(f"output_blocks.{block}.0", width + kept.pop(), out)
            width, last = out, 1
            if DEPTHS[level]:
                yield from transformer(f"output_blocks.{block}.1", out, DEPTHS[level])
                last = 2
            if level and i == 2:
                yield from convolution(f"output_blocks.{block}.{last}.conv", out, out)
            block += 1
    yield from norm("out.0", CHANNELS)
    yield from convolution("out.2", 4, CHANNELS)


def large_text() -> Shapes:
    """open_clip's text tower ViT-bigG-14."""
    width = 1280
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (49408, width)
    for i in range(32):
        block = f"transformer.resblocks.{i}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from linear(f"{block}.attn.out_proj", width, width)
        yield from linear(f"{block}.mlp.c_fc", 4 * width, width)
        yield from linear(f"{block}.mlp.c_proj", width, 4 * width)
        for n in (1, 2):
            yield from norm(f"{block}.ln_{n}", width)
    yield from norm("ln_final", width)


def is_norm(name: str) -> bool:
    """Whether a parameter is that of a norm, by its dotted name."""
    part = name.rsplit(".", 2)[-2]
    of_residual = part == "0" and (".in_layers." in name or ".out_layers." in name)
    return of_residual or "norm" in part or part.startswith("ln_")


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Random values of the size that a layer starts with."""
    if not shape:
        return torch.tensor(4.6)
    if name.endswith("weight") and (is_norm(f".{name}") or name == "out.0.weight"):
        return torch.ones(shape)
    if len(shape) == 1:
        return torch.zeros(shape)
    given = 1 if "embedding" in name else torch.Size(shape[1:]).numel()
    return torch.randn(shape) * (0.02 if "embedding" in name else given**-0.5)


def rest() -> Iterator[tuple[str, Tensor]]:
    """The autoencoder and the smaller text tower, as SD1.5 has them."""
    from ldm.modules.diffusionmodules.model import Decoder, Encoder
    from torch import nn
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768,
    )  # fmt: skip
    parts = {
        "first_stage_model.encoder": Encoder(**AUTOENCODER), "first_stage_model.decoder": Decoder(**AUTOENCODER),
        "first_stage_model.quant_conv": nn.Conv2d(8, 8, 1), "first_stage_model.post_quant_conv": nn.Conv2d(4, 4, 1),
        "conditioner.embedders.0.transformer": CLIPTextModel(text),
    }  # fmt: skip
    for prefix, module in parts.items():
        for name, value in randomised(module).state_dict().items():
            yield f"{prefix}.{name}", value.half() if value.dtype == torch.float32 else value


def main(path: str) -> None:
    torch.manual_seed(3)
    tensors = {f"model.diffusion_model.{name}": drawn(name, shape).to(torch.float8_e4m3fn) for name, shape in unet()}
    tensors |= {f"conditioner.embedders.1.model.{name}": drawn(name, shape).half() for name, shape in large_text()}
    tensors |= dict(rest())
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


if __name__ == "__main__":
    main(sys.argv[1])
