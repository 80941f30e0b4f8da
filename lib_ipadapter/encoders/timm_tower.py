"""Vision towers that open_clip takes from timm (SigLIP, EVA02, ...), by the open_clip config beside the weights, and
those of timm itself, by their name (named.py).

``mine.json`` names the tower (``vision_cfg.timm_model_name``, ``timm_pool``, ``timm_proj``), ``mine.safetensors``
has its weights under open_clip's names (``visual.trunk.*``, ``visual.head.*``). Shapes alone do not identify them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import BrokenEncoder
from .eva import eva_keys
from .files import opened
from .spec import CLIP_MEAN, CLIP_STD, LEVELS, MOST, EncoderSpec, Feature

PREFIX = "visual."


def imported(name: str) -> Any:
    """The package timm, for the tower of that name. Raises BrokenEncoder where it is missing."""
    try:
        import timm
    except ImportError as error:
        raise BrokenEncoder(
            f"the tower {name} needs the Python package timm, which cannot be imported ({error}). Install it into "
            'the environment: pip install "timm>=0.9.5"',
            value=name,
        ) from error
    return timm


class TimmTower(nn.Module):
    """Trunk and head, named as in open_clip's files."""

    def __init__(self, name: str, pool: str, projection: str, embed_dim: int, image_size: int) -> None:
        super().__init__()
        timm = imported(name)
        if name not in timm.list_models():
            raise BrokenEncoder(f"timm {timm.__version__} has no tower {name}; run: pip install -U timm", value=name)
        if projection not in ("", "none", "linear", "mlp"):
            raise BrokenEncoder(f"timm_proj is {projection!r}, expected none, linear, mlp or null", value=projection)
        # Without a projection in open_clip's head, timm's classifier is the projection.
        options: dict[str, Any] = {"num_classes": 0 if projection else embed_dim}
        options |= {"global_pool": pool} if pool else {}
        try:
            try:
                self.trunk: Any = timm.create_model(name, img_size=image_size, **options)
            except TypeError:  # convolutions take any size and have no such argument
                self.trunk = timm.create_model(name, **options)
        except Exception as error:  # timm raises all kinds
            raise BrokenEncoder(
                f"timm cannot build {name} with {options} ({error or type(error).__name__}); use the config that "
                "open_clip has for it"
            ) from None
        self.head = nn.Sequential()
        if projection == "linear":
            self.head.add_module("proj", nn.Linear(self.trunk.num_features, embed_dim, bias=False))
        elif projection == "mlp":
            self.head.add_module("mlp", timm.layers.Mlp(self.trunk.num_features, 2 * embed_dim, embed_dim,
                                                        bias=(True, False)))  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to the embedding [B, E]."""
        embedding: Tensor = self.head(self.trunk(pixels))
        return embedding

    def penultimate(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden state before the last block [B, T, W], embedding [B, E]). Of a ConvNeXt the places of the map are the
        tokens, row by row."""
        (state,), embedding = self._before([blocks_of(self.trunk)[-1]], pixels)
        return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state, embedding

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states before the blocks at one to five sixths of the depth [B, 5, T, W], embedding [B, E]).

        Of 24 blocks 4, 8, 12, 16 and 20, as PuLID takes them (ToTheBeginning/PuLID, eva_clip/eva_vit_model.py)."""
        blocks = list(self.trunk.blocks)
        states, embedding = self._before(
            [blocks[len(blocks) * i // (LEVELS + 1)] for i in range(1, LEVELS + 1)], pixels
        )
        return torch.stack(states, dim=1), embedding

    def _before(self, blocks: Sequence[nn.Module], pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """(what each of these blocks is given, the embedding)."""
        states: list[Tensor] = []
        handles = [block.register_forward_pre_hook(lambda _, args: states.append(args[0])) for block in blocks]
        try:
            embedding = self(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return states, embedding


def blocks_of(trunk: Any) -> list[nn.Module]:
    """The blocks of a transformer, or of a ConvNeXt's stages; empty for another network."""
    stages = getattr(trunk, "stages", [])
    return list(getattr(trunk, "blocks", [])) or [block for stage in stages for block in getattr(stage, "blocks", [])]


class _Numbers(TorchFunctionMode):
    """What timm before 1.0 reads numbers off is real, whatever the device: meta has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return func(*args, **({"device": "cpu", **given} if func is torch.linspace else given))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """What is built inside has shapes and no weights: a name, or a config, may be that of gigabytes."""
    with torch.device("meta"), _Numbers():
        yield


def timm_spec(name: str, config: Mapping[str, Any]) -> EncoderSpec:
    """The spec of a config with ``timm_model_name``; sizes are read off the tower. Raises BrokenEncoder."""
    try:
        return _spec(name, config)
    except BrokenEncoder:
        raise
    except Exception as error:  # a network of another kind, which has not what is read off here; a foreign config
        raise BrokenEncoder(
            f"{name}: no vision transformer or ConvNeXt that can be used here ({error or type(error).__name__}); "
            "choose another tower",
            value=name,
        ) from None


def _spec(name: str, config: Mapping[str, Any]) -> EncoderSpec:
    vision, pixels = config["vision_cfg"], config.get("preprocess_cfg", {})
    model, pool, projection = _names(vision)
    size, embed_dim = int(vision["image_size"]), int(config["embed_dim"] or 0)
    if not (0 < size <= MOST and 0 <= embed_dim <= MOST):
        raise BrokenEncoder(
            f"image_size {size} and embed_dim {embed_dim}: expected whole numbers to {MOST}", value=name
        )
    with shapes_only():
        trunk = TimmTower(model, pool, projection, embed_dim, size).trunk
    blocks: list[Any] = blocks_of(trunk)
    convolutional = hasattr(trunk, "stem") and not hasattr(trunk, "patch_embed")
    if not blocks or not (hasattr(trunk, "patch_embed") or convolutional):
        raise BrokenEncoder(f"{name}: the tower {model} is neither a vision transformer nor a ConvNeXt", value=model)
    hidden = max(p.shape[0] for p in blocks[-1].mlp.parameters() if p.ndim > 1)
    width = int(trunk.num_features)
    mean, std = (tuple(pixels.get(key, default)) for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    return EncoderSpec(
        name=name,
        image_size=size,
        patch=int(trunk.feature_info[-1]["reduction"] if convolutional else size // trunk.patch_embed.grid_size[0]),
        width=width,
        layers=len(blocks),
        heads=1 if convolutional else int(blocks[0].attn.num_heads),
        embed_dim=embed_dim or int(getattr(trunk, "head_hidden_size", width)),
        mlp_ratio=hidden / width,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        prefix=0 if convolutional else int(getattr(trunk, "num_prefix_tokens", 1)),
        timm=(model, pool, projection),
    ).checked()


def _names(vision: Mapping[str, Any]) -> tuple[str, str, str]:
    """(model, pool, projection); null and absent are the same."""
    default = {"timm_pool": "avg", "timm_proj": "linear"}  # of open_clip
    pool, projection = (vision.get(key, default[key]) or "" for key in ("timm_pool", "timm_proj"))
    return str(vision["timm_model_name"]), str(pool), str(projection)


def load_timm(path: Path, spec: EncoderSpec, device: torch.device | str, dtype: torch.dtype) -> TimmTower:
    """The tower in a weight file. Raises BrokenEncoder, UnsafeFile, EncoderMissing."""
    parts = (*spec.timm, spec.embed_dim, spec.image_size)
    with opened(path) as (shapes, read):
        prefix = PREFIX if any(key.startswith(PREFIX) for key in shapes) else ""
        names = eva_keys(shapes) or {key[len(prefix) :]: key for key in shapes if key.startswith(prefix)}
        if not any(key.startswith("trunk.") for key in names):  # a file of timm's own
            names = {f"trunk.{key}": own for key, own in names.items()}
        with shapes_only():
            wanted = {key: tuple(value.shape) for key, value in TimmTower(*parts).state_dict().items()}
        wrong = [key for key, shape in wanted.items() if shapes.get(names.get(key, "")) != shape]
        if wrong or (prefix and set(names) - set(wanted)):
            left = sorted(set(names) - set(wanted))
            raise BrokenEncoder(
                f"{path.name}: not a whole {spec.timm[0]}: {len(wrong)} keys missing or misshapen, {len(left)} "
                "left over "
                f"({', '.join([*wrong, *left][:4])}, ...); use the file that {'timm' if not prefix else 'open_clip'} "
                "publishes"
                f"{f', or {spec.pretrained_hint}' if spec.pretrained_hint else ''}"
            )
        tower = TimmTower(*parts)
        tower.load_state_dict({key: read(names[key]) for key in wanted})
    return tower.to(torch.device(device), dtype)


def run_timm(tower: TimmTower, pixels: Tensor, feature: Feature | None) -> tuple[Tensor, Tensor, Tensor]:
    """(pooled, penultimate, levels) of normalised pixels; without a feature, not the levels."""
    nothing = torch.empty(0)
    if feature == "pooled":
        return tower(pixels), nothing, nothing
    if feature == "levels":
        levels, pooled = tower.levels(pixels)
        return pooled, nothing, levels
    penultimate, pooled = tower.penultimate(pixels)
    return pooled, penultimate, nothing
