"""DINO's vision transformers (arXiv 2104.14294, 2304.07193), from weight files of three layouts.

blocks.0.attn.qkv.weight                                    the authors' and timm's
encoder.layer.0.attention.attention.query.weight            Hugging Face's
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.files import opened
from ..errors import BrokenEncoder

EPS, HEAD = 1e-6, 64
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


@dataclass(frozen=True)
class Vit:
    """weights: by the authors' names, float32."""

    weights: Mapping[str, Tensor]

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Vit:
        """Raises BrokenEncoder, EncoderMissing, UnsafeFile."""
        with opened(path) as (shapes, read):
            state = {_plain(key): read(key).float() for key in shapes}
        own = _named({key: value for key, value in state.items() if not _ASIDE.fullmatch(key)}, path)
        _check(own, path)
        return cls({key: value.to(device) for key, value in own.items()})

    @property
    def patch(self) -> int:
        """Side of a patch, pixels."""
        return int(self.weights["patch_embed.proj.weight"].shape[-1])

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.weights["cls_token"].shape[-1])

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return sum(key.endswith(".attn.qkv.weight") for key in self.weights)

    @property
    def second(self) -> bool:
        """Whether it is a DINOv2, which scales its layers."""
        return "blocks.0.ls1.gamma" in self.weights

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to the class token behind the last norm [B, width]."""
        own = self.weights
        patches = F.conv2d(pixels, own["patch_embed.proj.weight"], own["patch_embed.proj.bias"], stride=self.patch)
        rows, columns = patches.shape[-2:]
        x = torch.cat([own["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(rows, columns)
        for number in range(self.layers):
            x = self._block(x, f"blocks.{number}.")
        return F.layer_norm(x[:, 0], (self.width,), own["norm.weight"], own["norm.bias"], EPS)

    def _block(self, x: Tensor, name: str) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self._linear(self._norm(x, f"{name}norm1"), f"{name}attn.qkv")
        q, k, v = qkv.view(batch, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self._scaled(self._linear(attended, f"{name}attn.proj"), f"{name}ls1.gamma")
        hidden = F.gelu(self._linear(self._norm(x, f"{name}norm2"), f"{name}mlp.fc1"))
        return x + self._scaled(self._linear(hidden, f"{name}mlp.fc2"), f"{name}ls2.gamma")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS)

    def _scaled(self, x: Tensor, name: str) -> Tensor:
        return x * self.weights[name] if name in self.weights else x

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Positions for a grid; of another than the file's, scaled as the authors' code does: by (n + 0.1) / m."""
        own = self.weights["pos_embed"]
        side = round((own.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return own
        grid = own[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
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


def _check(state: Mapping[str, Tensor], path: Path) -> None:
    """Every key of a DINO is there and no other. Raises BrokenEncoder."""
    layers = sum(key.endswith(".attn.qkv.weight") for key in state)
    parts = [f"{name}.{kind}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
             for kind in ("weight", "bias")]  # fmt: skip
    if any(key.endswith("ls1.gamma") for key in state):
        parts += ["ls1.gamma", "ls2.gamma"]
    wanted = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    wanted |= {f"blocks.{number}.{part}" for number in range(layers) for part in parts}
    missing, unknown = sorted(wanted - set(state)), sorted(set(state) - wanted)
    if missing or unknown or not layers or state["cls_token"].shape[-1] % HEAD:
        raise BrokenEncoder(
            f"{path.name}: no DINO or DINOv2 that can be run: {len(missing)} keys missing ({', '.join(missing[:2])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:2])}); expected a ViT without registers, such as "
            "dino_deitsmall8_pretrain.pth or dinov2_vits14_pretrain.pth"
        )
