"""Writes a random CLIP ViT-L/14 in half precision, under the keys of transformers: python real_encoder.py FILE."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH, EMBED = 1024, 768  # of a token, and of the projected embedding
CONFIG = CLIPVisionConfig(
    hidden_size=WIDTH, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
    patch_size=14, projection_dim=EMBED, hidden_act="quick_gelu",
)  # fmt: skip


def main(path: str) -> None:
    torch.manual_seed(2)
    tensors = CLIPVisionModelWithProjection(CONFIG).state_dict()
    # Stronger than at the start of a training, so that different pictures give clearly different features.
    kept = {
        key: value * (2.0 if value.ndim == 2 else 1.0) for key, value in tensors.items() if value.is_floating_point()
    }
    save_file({key: value.half().contiguous() for key, value in kept.items()}, path)


if __name__ == "__main__":
    main(sys.argv[1])
