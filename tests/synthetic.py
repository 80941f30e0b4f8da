"""Synthetic adapter files: every variant in every container and key style, of any size, random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.adapters.projection import LinearProjection, MLPProjection, Resampler

SD1_WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280)
SDXL_WIDTHS = (640,) * 4 + (1280,) * 20 + (1280,) * 30 + (640,) * 6 + (1280,) * 10
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
) -> dict[str, Tensor]:
    """Flat tensors of an adapter; ``dim``, ``inner`` and ``depth`` are the resampler's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if variant == "base":
            module: torch.nn.Module = LinearProjection(feature_width, tokens, context)
        elif variant == "full":
            module = MLPProjection(feature_width, context)
        else:
            module = Resampler(feature_width, tokens, dim, inner, 4 * dim, depth, context)
        # Norms start as the identity, which would hide norms that are mixed up: every vector is moved off it.
        state = {key: v + 0.3 * torch.randn_like(v) if v.ndim == 1 else v for key, v in module.state_dict().items()}
        flat = {f"image_proj.{key}": value for key, value in state.items()}
        for i, width in enumerate(widths):
            for kind in ("to_k_ip", "to_v_ip"):
                flat[f"ip_adapter.{2 * i + 1}.{kind}.weight"] = torch.randn(width, context) / context**0.5
    return {key: value.detach().to(dtype).contiguous() for key, value in flat.items()}


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
