"""A small image tower of CLIP with random weights."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_ipadapter.encoders import (
    EncoderSpec,
)
from lib_ipadapter.encoders.layout import tower_shapes

TINY = EncoderSpec("tiny", image_size=32, patch=8, width=64, layers=3, heads=2, embed_dim=24)
Weights = dict[str, Tensor]


def tiny_weights(seed: int = 0, spec: EncoderSpec = TINY) -> Weights:
    """open_clip's layout of the bare tower."""
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=draw) * 0.2 for key, shape in tower_shapes(spec).items()}


def as_open_clip(tower: Weights) -> Weights:
    """A whole CLIP of open_clip: the text tower's keys look like the bare image tower's."""
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(7), "positional_embedding": torch.ones(77, 7)}
    return {**{f"visual.{key}": value for key, value in tower.items()}, **text, "logit_scale": torch.ones(())}


def as_hugging_face(tower: Weights) -> Weights:
    """The layout of transformers, written out independently of the reader."""
    found = {
        "vision_model.embeddings.class_embedding": tower["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": tower["positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(17).view(1, -1),
        "vision_model.embeddings.patch_embedding.weight": tower["conv1.weight"],
        "visual_projection.weight": tower["proj"].t().contiguous(),
        "text_model.final_layer_norm.weight": torch.ones(7),
    }
    for kind in ("weight", "bias"):
        found[f"vision_model.pre_layrnorm.{kind}"] = tower[f"ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = tower[f"ln_post.{kind}"]
        for n in range(TINY.layers):
            ours, theirs = f"transformer.resblocks.{n}.", f"vision_model.encoder.layers.{n}."
            for name, stacked in zip("qkv", tower[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                found[f"{theirs}self_attn.{name}_proj.{kind}"] = stacked.clone()
            found[f"{theirs}self_attn.out_proj.{kind}"] = tower[f"{ours}attn.out_proj.{kind}"]
            found[f"{theirs}layer_norm1.{kind}"] = tower[f"{ours}ln_1.{kind}"]
            found[f"{theirs}layer_norm2.{kind}"] = tower[f"{ours}ln_2.{kind}"]
            found[f"{theirs}mlp.fc1.{kind}"] = tower[f"{ours}mlp.c_fc.{kind}"]
            found[f"{theirs}mlp.fc2.{kind}"] = tower[f"{ours}mlp.c_proj.{kind}"]
    return found


def without(weights: Weights, *keys: str) -> Weights:
    return {key: value for key, value in weights.items() if key not in keys}


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)
