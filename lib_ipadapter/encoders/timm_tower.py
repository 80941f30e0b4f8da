"""Vision towers that open_clip takes from timm (SigLIP, EVA02, ...), by the open_clip config beside the weights.

``mine.json`` names the tower (``vision_cfg.timm_model_name``, ``timm_pool``, ``timm_proj``), ``mine.safetensors``
has its weights under open_clip's names (``visual.trunk.*``, ``visual.head.*``). Shapes alone do not identify them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BrokenEncoder
from .files import opened
from .spec import CLIP_MEAN, CLIP_STD, EncoderSpec, Feature

PREFIX = "visual."


class TimmTower(nn.Module):
    """Trunk and head, named as in open_clip's files."""

    def __init__(self, name: str, pool: str, projection: str, embed_dim: int, image_size: int) -> None:
        super().__init__()
        import timm

        if name not in timm.list_models():
            raise BrokenEncoder(f"timm {timm.__version__} has no tower {name}; run: pip install -U timm", value=name)
        if projection not in ("", "none", "linear"):
            raise BrokenEncoder(f"timm_proj is {projection!r}, expected none, linear or null", value=projection)
        # Without a projection in open_clip's head, timm's classifier is the projection.
        options: dict[str, Any] = {"num_classes": 0 if projection else embed_dim}
        options |= {"global_pool": pool} if pool else {}
        try:
            try:
                self.trunk: Any = timm.create_model(name, img_size=image_size, **options)
            except TypeError:  # convolutions take any size and have no such argument
                self.trunk = timm.create_model(name, **options)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise BrokenEncoder(
                f"timm cannot build {name} with {options} ({error}); use the config that open_clip has for it"
            ) from None
        self.head = nn.Sequential()
        if projection == "linear":
            self.head.add_module("proj", nn.Linear(self.trunk.num_features, embed_dim, bias=False))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to the embedding [B, E]."""
        embedding: Tensor = self.head(self.trunk(pixels))
        return embedding

    def penultimate(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden state before the last block [B, T, W], embedding [B, E])."""
        states: list[Tensor] = []
        handle = self.trunk.blocks[-1].register_forward_pre_hook(lambda module, args: states.append(args[0]))
        try:
            embedding = self(pixels)
        finally:
            handle.remove()
        return states[0], embedding


def timm_spec(name: str, config: Mapping[str, Any]) -> EncoderSpec:
    """The spec of a config with ``timm_model_name``; sizes are read off the tower. Raises BrokenEncoder."""
    vision, pixels = config["vision_cfg"], config.get("preprocess_cfg", {})
    model, pool, projection = _names(vision)
    size, embed_dim = int(vision["image_size"]), int(config["embed_dim"])
    with torch.device("meta"):  # only its shapes are needed
        trunk = TimmTower(model, pool, projection, embed_dim, size).trunk
    blocks = list(getattr(trunk, "blocks", []))
    if not blocks or not hasattr(trunk, "patch_embed"):
        raise BrokenEncoder(f"{name}: the tower {model} is not a vision transformer", value=model)
    hidden = next(p.shape[0] for p in blocks[0].mlp.parameters() if p.ndim == 2)
    width = int(trunk.num_features)
    mean, std = (tuple(pixels.get(key, default)) for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    return EncoderSpec(
        name=name,
        image_size=size,
        patch=int(trunk.patch_embed.patch_size[0]),
        width=width,
        layers=len(blocks),
        heads=int(blocks[0].attn.num_heads),
        embed_dim=embed_dim,
        mlp_ratio=hidden / width,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        prefix=int(getattr(trunk, "num_prefix_tokens", 1)),
        timm=(model, pool, projection),
    )


def _names(vision: Mapping[str, Any]) -> tuple[str, str, str]:
    """(model, pool, projection); null and absent are the same."""
    default = {"timm_pool": "avg", "timm_proj": "linear"}  # of open_clip
    pool, projection = (vision.get(key, default[key]) or "" for key in ("timm_pool", "timm_proj"))
    return str(vision["timm_model_name"]), str(pool), str(projection)


def load_timm(path: Path, spec: EncoderSpec, device: torch.device | str, dtype: torch.dtype) -> TimmTower:
    """The tower in a weight file. Raises BrokenEncoder, UnsafeFile, EncoderMissing."""
    tower = TimmTower(*spec.timm, spec.embed_dim, spec.image_size)
    with opened(path) as (shapes, read):
        prefix = PREFIX if any(key.startswith(PREFIX) for key in shapes) else ""
        names = {key[len(prefix) :]: key for key in shapes if key.startswith(prefix)}
        wanted = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
        wrong = [key for key, shape in wanted.items() if shapes.get(names.get(key, "")) != shape]
        if wrong or (prefix and set(names) - set(wanted)):
            left = sorted(set(names) - set(wanted))
            raise BrokenEncoder(
                f"{path.name}: not a whole {spec.timm[0]}: {len(wrong)} keys missing or misshapen, {len(left)} "
                "left over "
                f"({', '.join([*wrong, *left][:4])}, ...); use the file that open_clip publishes"
            )
        tower.load_state_dict({key: read(names[key]) for key in wanted})
    return tower.to(torch.device(device), dtype)


def run_timm(tower: TimmTower, pixels: Tensor, feature: Feature | None) -> tuple[Tensor, Tensor]:
    """(pooled, penultimate) of normalised pixels."""
    if feature == "pooled":
        return tower(pixels), torch.empty(0)
    penultimate, pooled = tower.penultimate(pixels)
    return pooled, penultimate
