"""DINO's vision transformers (arXiv 2104.14294, 2304.07193), from weight files of three layouts.

blocks.0.attn.qkv.weight                                    the authors' and timm's
encoder.layer.0.attention.attention.query.weight            Hugging Face's
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.files import opened
from ..encoders.timm_tower import imported
from ..errors import BrokenEncoder

HEAD, SIDE = 64, 224
_PREFIXES = ("state_dict.", "teacher.", "student.", "module.", "model.", "backbone.", "vit.", "dinov2.")
_ASIDE = re.compile(r"(head|pooler|classifier|fc_norm|dino_head|ibot_head)\..*|mask_token|embeddings\.mask_token")
_SINGLE = {
    "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias",
}  # fmt: skip
_PARTS = {
    "attention.output.dense": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "norm1": "norm1", "norm2": "norm2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_HF = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


class Vit:
    """timm's vision transformer with a file's weights."""

    def __init__(self, tower: Any, second: bool) -> None:
        self.tower = tower
        self.second = second  # whether it is a DINOv2, which scales its layers

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Vit:
        """Raises BrokenEncoder, EncoderMissing, UnsafeFile."""
        with opened(path) as (shapes, read):
            state = {_plain(key): read(key).float() for key in shapes}
        own = _named({key: value for key, value in state.items() if not _ASIDE.fullmatch(key)}, path)
        try:
            patch, width = own["patch_embed.proj.weight"].shape[-1], own["cls_token"].shape[-1]
            second, hidden = "blocks.0.ls1.gamma" in own, own["blocks.0.mlp.fc1.weight"].shape[0]
            own["pos_embed"] = _positions(own["pos_embed"], SIDE // patch)
            tower = imported("of DINO").models.vision_transformer.VisionTransformer(
                img_size=SIDE, patch_size=patch, embed_dim=width, num_heads=width // HEAD, mlp_ratio=hidden / width,
                depth=sum(key.endswith(".attn.qkv.weight") for key in own), init_values=1.0 if second else None,
                num_classes=0,
            )  # fmt: skip
            tower.load_state_dict(own)
        except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError, AssertionError) as error:
            raise BrokenEncoder(
                f"{path.name}: no DINO or DINOv2 that can be run ({' '.join(str(error).split())[:200]}); expected a "
                "ViT without registers, such as dino_deitsmall8_pretrain.pth or dinov2_vits14_pretrain.pth"
            ) from None
        return cls(tower.eval().requires_grad_(False).to(device), second)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, 224, 224] to the class token behind the last norm [B, width]."""
        found: Tensor = self.tower.forward_features(pixels)[:, 0]
        return found


def _positions(own: Tensor, side: int) -> Tensor:
    """Positions [1, 1 + n², width] for a grid of another side, scaled as the authors' code does: by (side + 0.1) / n,
    which timm's own scaling is not."""
    given = round((own.shape[1] - 1) ** 0.5)
    if given == side:
        return own
    grid = own[:, 1:].reshape(1, given, given, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / given
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return torch.cat([own[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _plain(key: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), ""):
        key = key[len(prefix) :]
    return key


def _named(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Hugging Face's names as the authors'."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _HF.fullmatch(key)
        if match is None:
            found[_SINGLE.get(key, key)] = value
            continue
        block, (part, _, kind) = f"blocks.{match[1]}.", match[2].rpartition(".")
        if part in ("layer_scale1", "layer_scale2"):
            found[f"{block}ls{part[-1]}.gamma"] = value
        elif part == "attention.attention.query":
            names = [key.replace(".query.", f".{name}.") for name in ("query", "key", "value")]
            if any(name not in state for name in names):
                raise BrokenEncoder(f"{path.name}: {', '.join(names)} are not all in it; download it again")
            found[f"{block}attn.qkv.{kind}"] = torch.cat([state[name] for name in names])
        elif part not in ("attention.attention.key", "attention.attention.value"):
            found[f"{block}{_PARTS.get(part, part)}.{kind}"] = value
    return found
