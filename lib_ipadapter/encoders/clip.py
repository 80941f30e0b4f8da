"""ImageEncoder: a picture to CLIP's pooled and penultimate features, by open_clip's vision tower."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import BrokenEncoder, ImageError
from .files import opened
from .layout import Read, TowerKeys, tower_keys
from .precision import without_autocast
from .recognise import spec_of
from .spec import EncoderSpec, Feature
from .state import assign
from .timm_tower import TimmTower, load_timm, run_timm

Device = torch.device | str


class NotFinite(BrokenEncoder):
    """A feature has NaN or infinite numbers."""


@dataclass(frozen=True)
class Features:
    """The encoder's output for pictures, float32 on the CPU; a part that was not asked for is empty.

    pooled [1, E]: the projected embedding. penultimate [1, T, W]: the hidden state before the last
    block, class token included, no final norm. levels [1, 5, T, W]: those at five depths, if they were asked for.
    """

    pooled: Tensor
    penultimate: Tensor
    levels: Tensor = field(default_factory=lambda: torch.empty(0))

    def of(self, feature: Feature) -> Tensor:
        """The feature of that name."""
        return {"pooled": self.pooled, "levels": self.levels}.get(feature, self.penultimate)


class ImageEncoder:
    """open_clip's vision tower with weights of any layout. Built by ``load``."""

    def __init__(self, spec: EncoderSpec, tower: nn.Module, path: Path) -> None:
        self.spec = spec
        self.path = path
        self.tower: Any = tower.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | str, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> ImageEncoder:
        """The encoder of a weight file, recognised by its config or its shapes; only the vision tower is read.

        Raises BrokenEncoder (no tower, unknown tower, missing or misshapen keys), EncoderMissing, UnsafeFile.
        """
        path = Path(path)
        spec = spec_of(path)
        if spec.timm[0]:
            return cls(spec, load_timm(path, spec, device, dtype), path)
        with opened(path) as (shapes, read):
            keys = tower_keys(shapes)
            assert keys is not None  # spec_of has checked them
            tower = build_tower(spec)
            assign(tower, _weights(keys, read, device, dtype))
        return cls(spec, tower, path)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.tower.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = next(self.tower.parameters()).dtype
        return dtype

    def to(self, device: Device) -> ImageEncoder:
        """Moves the weights."""
        self.tower.to(device)
        return self

    def encode(self, picture: Image.Image, feature: Feature | None = None) -> Features:
        """Features of an RGB picture of spec.image_size squared (``images.fit`` makes it so).

        feature: the only one wanted; None for both. Raises ImageError for another size or mode, NotFinite for NaN.
        """
        side = self.spec.image_size
        if picture.mode != "RGB" or picture.size != (side, side):
            raise ImageError(
                f"the encoder {self.spec.name} got a picture of mode {picture.mode}, {picture.width}x"
                f"{picture.height}; expected RGB, {side}x{side}: pass it through images.load and images.fit"
            )
        return self._forward(self.pixels(picture), feature)

    def encode_values(self, values: Tensor, feature: Feature | None = None) -> Features:
        """Features of RGB values [1, 3, H, W] in 0..1, which are brought to the tower's square as PuLID does: bicubic,
        no antialiasing, not clamped."""
        side = self.spec.image_size
        square = F.interpolate(values.float(), (side, side), mode="bicubic", align_corners=False)
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (self.spec.mean, self.spec.std))
        return self._forward((square - mean) / std, feature)

    def unconditional(self, feature: Feature | None = None) -> Features:
        """Features of no picture: pooled is zero, penultimate is that of normalised pixels that are zero."""
        side = self.spec.image_size
        pooled = torch.zeros(1, self.spec.embed_dim if feature != "penultimate" else 0)
        if feature == "pooled":
            return Features(pooled, _nothing())
        return Features(pooled, self._forward(torch.zeros(1, 3, side, side), "penultimate").penultimate)

    def pixels(self, picture: Image.Image) -> Tensor:
        """Normalised pixels [1, 3, S, S], float32."""
        return normalised(picture, self.spec)

    def encode_pixels(self, pixels: Tensor, feature: Feature) -> Tensor:
        """``feature`` [B, ...] of normalised pixels [B, 3, S, S], float32 on the CPU."""
        return self._forward(pixels, feature).of(feature)

    def _forward(self, pixels: Tensor, feature: Feature | None) -> Features:
        found = self._features(pixels, feature)
        if not all(part.isfinite().all() for part in (found.pooled, found.penultimate, found.levels)):
            raise NotFinite(
                f"{self.path.name}: the image encoder {self.spec.name} gives NaN or infinite features in "
                f"{str(self.dtype).removeprefix('torch.')}; its weights are damaged, or not those of this tower. "
                "Download it again",
                value=self.spec.name,
            )
        return found

    @torch.no_grad()
    def _features(self, pixels: Tensor, feature: Feature | None) -> Features:
        """The tower, block by block. Its forward gives no hidden state, and differs between versions."""
        tower = self.tower
        weight = next(tower.parameters())
        with without_autocast(weight.device):
            if isinstance(tower, TimmTower):
                parts = run_timm(tower, pixels.to(weight.device, weight.dtype), feature)
                return Features(*(_out(part) if part.numel() else part for part in parts))
            if feature == "levels":
                raise BrokenEncoder(f"{self.path.name}: {self.spec.name} has no levels; PuLID takes EVA02-CLIP's")
            hidden = _embed(tower, pixels.to(weight.device, weight.dtype))
            blocks = list(tower.transformer.resblocks)
            for block in blocks[:-1]:
                hidden = _run(block, hidden)
            penultimate = _nothing() if feature == "pooled" else _out(hidden)
            if feature == "penultimate":
                return Features(_nothing(), penultimate)
            pooled = tower.ln_post(_run(blocks[-1], hidden)[:, 0]) @ tower.proj
        return Features(_out(pooled), penultimate)


def normalised(picture: Image.Image, spec: EncoderSpec) -> Tensor:
    """Pixels [1, 3, S, S] of an RGB picture, float32, as the tower takes them."""
    values = torch.from_numpy(np.array(picture, dtype=np.float32) / 255.0)
    values = (values - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    planes: Tensor = values.permute(2, 0, 1).unsqueeze(0).contiguous()
    return planes


def build_tower(spec: EncoderSpec) -> nn.Module:
    """open_clip's tower without weights: on the meta device nothing is allocated or initialised."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    with torch.device("meta"):
        tower: nn.Module = VisionTransformer(
            image_size=spec.image_size,
            patch_size=spec.patch,
            width=spec.width,
            layers=spec.layers,
            heads=spec.heads,
            mlp_ratio=spec.mlp_ratio,
            output_dim=spec.embed_dim,
            act_layer=QuickGELU if spec.quick_gelu else nn.GELU,
        )
    return tower


def _weights(keys: TowerKeys, read: Read, device: Device, dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: keys.load(key, read).to(device, dtype) for key in keys.sources}


def _embed(tower: Any, pixels: Tensor) -> Tensor:
    """Patches and class token with positions, normalised: [B, T, W]."""
    patches = tower.conv1(pixels).flatten(2).transpose(1, 2)
    first = tower.class_embedding.expand(patches.shape[0], 1, -1)
    hidden: Tensor = tower.ln_pre(torch.cat([first, patches], dim=1) + tower.positional_embedding)
    return hidden


def _run(block: Any, hidden: Tensor) -> Tensor:
    """One block on [B, T, W]; open_clip before 2.24 wants the tokens first."""
    if getattr(block.attn, "batch_first", False):
        result: Tensor = block(hidden)
    else:
        result = block(hidden.transpose(0, 1)).transpose(0, 1)
    return result


def _out(feature: Tensor) -> Tensor:
    result: Tensor = feature.to("cpu", torch.float32).contiguous()
    return result


def _nothing() -> Tensor:
    return torch.empty(0)
