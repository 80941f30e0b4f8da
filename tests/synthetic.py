"""Synthetic adapter files: every variant in every container and key style, of any size, random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.adapters.lora import TARGETS, lora_key
from lib_ipadapter.adapters.projection import (
    FacePlusProjection,
    FaceProjection,
    LinearProjection,
    MLPProjection,
    Resampler,
)

SD1_WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280)
SDXL_WIDTHS = (640,) * 4 + (1280,) * 20 + (1280,) * 30 + (640,) * 6 + (1280,) * 10
FACE = 512  # width of a recogniser's embedding
STYLES = ("safetensors", "pickle", "flat pickle", "accelerate")


def adapter_tensors(
    variant: str = "base",
    context: int = 64,
    widths: Sequence[int] = (32, 64, 32),
    feature_width: int = 48,
    tokens: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    dim: int = 64,
    inner: int = 64,
    depth: int = 2,
    lora: int = 0,
) -> dict[str, Tensor]:
    """Flat tensors of an adapter; ``dim``, ``inner`` and ``depth`` are the resampler's; ``lora``: rank of a LoRA in it.
    Of face kinds (faceid, faceid-plus, unnorm) ``feature_width`` is that of the CLIP features, where they take any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if variant == "base":
            module: torch.nn.Module = LinearProjection(feature_width, tokens, context)
        elif variant == "full":
            module = MLPProjection(feature_width, context)
        elif variant == "faceid":
            module = FaceProjection(FACE, 2 * FACE, tokens, context)
        elif variant == "faceid-plus":
            resampler = Resampler(feature_width, 0, context, inner, 4 * context, depth, context)
            module = FacePlusProjection(2 * FACE, tokens, context, resampler)
        elif variant == "unnorm":
            module = Resampler(FACE, tokens, dim, inner, 4 * dim, depth, context)
        else:
            module = Resampler(feature_width, tokens, dim, inner, 4 * dim, depth, context)
        # Norms start as the identity, which would hide norms that are mixed up: every vector is moved off it.
        state = {key: v + 0.3 * torch.randn_like(v) if v.ndim == 1 else v for key, v in module.state_dict().items()}
        flat = {f"image_proj.{key}": value for key, value in state.items()}
        for i, width in enumerate(widths):
            for kind in ("to_k_ip", "to_v_ip"):
                flat[f"ip_adapter.{2 * i + 1}.{kind}.weight"] = torch.randn(width, context) / context**0.5
        flat |= lora_tensors(widths, context, lora) if lora else {}
    return {key: value.detach().to(dtype).contiguous() for key, value in flat.items()}


@contextmanager
def undrawn() -> Iterator[None]:
    """Linear layers are made without random weights, which takes seconds where they are wide and a file fills them."""
    with mock.patch.object(torch.nn.Linear, "reset_parameters", return_value=None):
        yield


def pulid_tensors(
    version: str = "v1",
    context: int = 64,
    widths: Sequence[int] = (32, 64, 32),
    pooled: int = 40,
    hidden: int = 96,
    dim: int = 64,
    tokens: int = 8,
    depth: int = 5,
    converted: bool = False,
    seed: int | None = 0,
) -> dict[str, Tensor]:
    """Flat tensors of a PuLID file of version v1 or v1.1, with its authors' keys, or those of a converted one.
    ``pooled`` and ``hidden``: widths of EVA-CLIP's embedding and hidden states; ``dim``: of the encoder; ``tokens``,
    ``depth``: of v1.1. seed: None on the meta device."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    flat: dict[str, Tensor] = {}

    def put(key: str, *shape: int, scale: float = 0.0) -> None:
        spread = scale or (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        norm = len(shape) == 1 and key.endswith("weight")  # moved off the identity, which would hide a mix-up
        flat[f"id_adapter.{key}"] = torch.randn(shape, generator=generator) * spread + float(norm)

    def mlp(name: str, given: int, out: int) -> None:
        for index, shape in ((0, (dim, given)), (1, (dim,)), (3, (dim, dim)), (4, (dim,)), (6, (out, dim))):
            put(f"{name}.{index}.weight", *shape)
            put(f"{name}.{index}.bias", shape[0])

    if version == "v1":
        mlp("body", FACE + pooled, 5 * context)
    else:
        mlp("id_embedding_mapping", FACE + pooled, 5 * dim)
        put("latents", 1, tokens, dim, scale=1.0)
        put("proj_out", dim, context, scale=dim**-0.5)
    for i in range(5):
        mlp(f"mapping_{i}", hidden, context if version == "v1" else dim)
        if version == "v1":
            mlp(f"mapping_patch_{i}", hidden, context)
    for i in range(depth if version == "v1.1" else 0):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            put(f"layers.{i}.{norm}.weight", dim)
            put(f"layers.{i}.{norm}.bias", dim)
        for name, rows, given in (("0.to_q", dim, dim), ("0.to_kv", 2 * dim, dim), ("0.to_out", dim, dim),
                                  ("1.1", 4 * dim, dim), ("1.3", dim, 4 * dim)):  # fmt: skip
            put(f"layers.{i}.{name}.weight", rows, given)
    for i, width in enumerate(widths):
        for kind in ("k", "v"):
            weight = torch.randn((width, context), generator=generator) / context**0.5
            flat[f"id_adapter_attn_layers.{2 * i + 1}.id_to_{kind}.weight"] = weight
    if converted:
        flat = {_converted(key): value for key, value in flat.items()}
    return flat


def _converted(key: str) -> str:
    key = key.replace("id_adapter.", "image_proj.").replace("id_adapter_attn_layers.", "ip_adapter.")
    return key.replace("id_to_k.", "to_k_ip.").replace("id_to_v.", "to_v_ip.")


def lora_tensors(widths: Sequence[int], context: int, rank: int) -> dict[str, Tensor]:
    """A LoRA on every projection of self- and cross-attention, of the size of a trained one's effect."""
    flat = {}
    for i, width in enumerate(widths):
        for number in (2 * i, 2 * i + 1):
            for target in TARGETS:
                given = context if number % 2 and target in ("to_k", "to_v") else width
                flat[lora_key(number, target, "down")] = torch.randn(rank, given) / given**0.5
                flat[lora_key(number, target, "up")] = 0.3 * torch.randn(width, rank) / rank**0.5
    return flat


def nested(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As the original training's .bin holds it."""
    out: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        part, _, rest = key.partition(".")
        out.setdefault(part, {})[rest] = value
    return out


def write_adapter(path: Path, flat: dict[str, Tensor], style: str = "safetensors", **metadata: str) -> Path:
    """Writes the tensors in one of STYLES."""
    content: Any = flat
    if style == "accelerate":
        content = {
            "unet.conv_in.weight": torch.zeros(2, 2),
            "unet.down_blocks.0.attn2.processor.w": torch.zeros(1),
        }
        names = {"image_proj.": "image_proj_model.", "ip_adapter.": "adapter_modules."}
        for key, value in flat.items():
            part = next(part for part in names if key.startswith(part))
            content[names[part] + key[len(part) :]] = value
    if path.suffix == ".safetensors":
        save_file(content, str(path), metadata or None)
    else:
        torch.save(nested(flat) if style == "pickle" else content, path)
    return path
