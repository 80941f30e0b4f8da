"""Measures by weight files that the user names: DINO, DINOv2 and CSD, each the cosine of picture and reference.

Pictures are prepared as the published code of each does: DINO and DINOv2 as DreamBench++ measures them (shorter edge to
256, bicubic, middle 224; ImageNet's mean), CSD as its authors (shorter edge to 224; CLIP's mean).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..adapters.file import sha256
from ..encoders.clip import ImageEncoder, build_tower
from ..encoders.files import opened
from ..encoders.spec import CLIP_MEAN, CLIP_STD, EncoderSpec
from ..encoders.state import assign
from ..errors import BrokenEncoder, ConfigError
from .items import Item
from .vit import HEAD, Vit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Embed = Callable[[Tensor], Tensor]  # normalised pixels [1, 3, S, S] to a vector [1, E]


@dataclass(frozen=True)
class Preprocess:
    """resize: the shorter edge, pixels; side: of the middle square; lower: whether half a pixel counts towards the
    corner (Hugging Face) or to the even number (torchvision)."""

    resize: int
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    lower: bool = False

    def __call__(self, picture: Image.Image) -> Tensor:
        """Normalised pixels [1, 3, side, side]."""
        shorter = min(picture.size)
        width, height = (int(self.resize * edge / shorter) for edge in picture.size)
        whole = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (
            (edge - self.side) // 2 if self.lower else round((edge - self.side) / 2.0) for edge in (width, height)
        )
        square = whole.crop((left, top, left + self.side, top + self.side))
        values = torch.from_numpy(np.array(square, dtype=np.float32) / 255.0).permute(2, 0, 1)[None]
        mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (self.mean, self.std))
        return (values - mean) / std


PREPROCESS = {
    "dino": Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD),
    "dinov2": Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD, lower=True),
    "csd": Preprocess(224, 224, CLIP_MEAN, CLIP_STD),
}
NAMES = tuple(PREPROCESS)


class FileMeasure:
    """The cosine of the embeddings of picture and reference, -1..1."""

    def __init__(self, name: str, embed: Embed, path: Path, device: torch.device) -> None:
        self.name, self.path, self.device = name, path, device
        self._embed, self._prepare = embed, PREPROCESS[name]
        self._references: dict[str, Tensor] = {}

    def __call__(self, picture: Image.Image, item: Item) -> float:
        """Of a picture made for a reference."""
        if item.key not in self._references:
            self._references[item.key] = self.embedding(item.load())
        return float(self._references[item.key] @ self.embedding(picture))

    def embedding(self, picture: Image.Image) -> Tensor:
        """Of length 1, [E] float64. Raises BrokenEncoder where it is no number."""
        found = self._embed(self._prepare(picture).to(self.device))[0].double().cpu()
        if not found.isfinite().all():
            raise BrokenEncoder(f"{self.path.name}: its embeddings have NaN in them; download it again")
        return found / found.norm()

    def settings(self) -> dict[str, Any]:
        """JSON-safe."""
        own = self._prepare
        return {"file": self.path.name, "sha256": sha256(self.path), "resize": own.resize, "side": own.side}


def load_measures(texts: Sequence[str], device: torch.device) -> dict[str, FileMeasure]:
    """Of each NAME=FILE. Raises ConfigError, EncoderError, UnsafeFile."""
    found: dict[str, FileMeasure] = {}
    for text in texts:
        name, sign, file = text.partition("=")
        if not sign or not file or name not in NAMES or name in found:
            raise ConfigError("measure", text, f"NAME=FILE, each name once, of {', '.join(NAMES)}")
        path = Path(file)
        found[name] = FileMeasure(name, _embed(name, path, device), path, device)
    return found


def _embed(name: str, path: Path, device: torch.device) -> Embed:
    if name == "csd":
        return load_csd(path, device)
    vit = Vit.load(path, device)
    if vit.second != (name == "dinov2"):
        other = "dinov2" if vit.second else "dino"
        raise BrokenEncoder(
            f"{path.name}: the weights of {other}, expected those of {name}; write --measure {other}=..."
        )
    return vit.features


def load_csd(path: Path, device: torch.device) -> Embed:
    """CSD (arXiv 2404.01292): OpenAI's CLIP tower, projected by the style head. Raises BrokenEncoder."""
    with opened(path) as (shapes, read):
        keys = {_below(key): key for key in shapes}
        state = {key: read(keys[key]).float().to(device) for key in keys if key}
    try:
        state["proj"] = state.pop("last_layer_style")
        width, _, patch, _ = state["conv1.weight"].shape
        side = round((state["positional_embedding"].shape[0] - 1) ** 0.5) * patch
        hidden = state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise BrokenEncoder(f"{path.name}: no CSD: {error} is missing; expected CSD's checkpoint.pth") from None
    layers = len({key.split(".")[2] for key in state if key.startswith("transformer.")})
    spec = EncoderSpec(
        "CSD",
        side,
        patch,
        width,
        layers,
        max(1, width // HEAD),
        state["proj"].shape[1],
        hidden / width,
        quick_gelu=True,
    )
    encoder = ImageEncoder(spec, _tower(spec, state, path), path)
    return lambda pixels: encoder.encode_pixels(pixels, "pooled")


def _below(key: str) -> str:
    """A key's name in CLIP's tower; "last_layer_style" of the head; "" of what is not asked for."""
    if key.endswith("last_layer_style"):
        return "last_layer_style"
    return key.rpartition("backbone.")[2] if "backbone." in key else ""


def _tower(spec: EncoderSpec, state: Mapping[str, Tensor], path: Path) -> torch.nn.Module:
    tower = build_tower(spec)
    try:
        assign(tower, state)
    except RuntimeError as error:
        raise BrokenEncoder(f"{path.name}: no CSD that can be run ({error}); download it again") from None
    return tower
