"""A small CLIP of both towers with random weights, in open_clip's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SMALL_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_clip(folder: Path, config: dict[str, Any] | None = None, suffix: str = ".safetensors") -> tuple[Path, Any]:
    """Random weights of a small CLIP with its config beside it, and open_clip's own model of them."""
    import open_clip
    from safetensors.torch import save_file

    config = config or SMALL_CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        model = kind(**{k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg")})
    path = folder / f"small-judge{suffix}"
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    path.with_suffix(".json").write_text(json.dumps(config))
    return path, model.eval()
