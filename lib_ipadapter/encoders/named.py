"""Encoders by their published name: SigLIP, EVA02, DINOv2, ConvNeXt and other towers that timm builds.

``NAME.safetensors`` without a config beside it is the tower of that name, as the installed timm
(``vit_large_patch14_dinov2.lvd142m``) or open_clip (``ViT-SO400M-14-SigLIP``) has it: sizes, mean and std are theirs.
Its weights have the keys of timm's own files, or of open_clip's.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import BrokenEncoder
from .spec import CLIP_MEAN, CLIP_STD, EncoderSpec
from .timm_tower import imported, timm_spec

_TIMM = re.compile(r"(vit|naflexvit|eva|eva02|convnext|convnextv2)_[a-z0-9_]+(\.\w+)?")
_OPEN_CLIP = re.compile(r"ViT-.+-SigLIP.*|EVA0[12]-.+|convnext_[a-z]+(_[wd])?(_320)?")


def looks_named(stem: str) -> bool:
    """Whether a file's name may be a tower's; nothing is imported to tell."""
    return bool(_TIMM.fullmatch(stem) or _OPEN_CLIP.fullmatch(stem))


@functools.lru_cache(maxsize=256)
def named_spec(name: str) -> EncoderSpec:
    """The encoder of a published name. Raises BrokenEncoder for a name that the installed packages do not know, with
    the remedy."""
    config = _by_open_clip(name) or _by_timm(name)
    if config is None:
        raise BrokenEncoder(
            f"no tower {name} is known to timm {imported(name).__version__} and open_clip {_version()}. Correct the "
            "name, get a version that has it (pip install -U timm), or put its open_clip_config.json beside the "
            f"weights as {name}.json",
            value=name,
        )
    return timm_spec(name, config)


def hub(name: str) -> str:
    """Where a tower's weights are published, by timm's own list; "" if that does not say."""
    try:
        repo = getattr(imported(name).models.get_pretrained_cfg(name), "hf_hub_id", None) or ""
    except (BrokenEncoder, RuntimeError, ValueError):
        repo = ""
    return repo if isinstance(repo, str) else ""


def _by_timm(name: str) -> dict[str, Any] | None:
    """As an open_clip config. The classifier of a tower from a CLIP is its projection; others are left out."""
    timm = imported(name)
    if not _TIMM.fullmatch(name) or not timm.is_model(name.partition(".")[0]):
        return None
    try:
        told = timm.models.get_pretrained_cfg(name)
    except (RuntimeError, ValueError):  # a tag that it does not know
        told = None
    if told is None:
        return None
    clip = "clip" in re.split(r"[_.]", name) and "_ft_in" not in name and told.num_classes
    vision = {
        "timm_model_name": name.partition(".")[0], "timm_pool": "", "timm_proj": "" if clip else "none",
        "image_size": told.input_size[-1],
    }  # fmt: skip
    return {
        "embed_dim": told.num_classes if clip else None, "vision_cfg": vision,
        "preprocess_cfg": {"mean": told.mean, "std": told.std},
    }  # fmt: skip


def _by_open_clip(name: str) -> dict[str, Any] | None:
    if not _OPEN_CLIP.fullmatch(name):
        return None
    try:
        import open_clip
    except ImportError:  # not every host has it; what it builds is then known by a config alone
        return None
    config = open_clip.get_model_config(name)
    if not isinstance(config, dict) or "timm_model_name" not in config["vision_cfg"]:
        return None
    tags = open_clip.list_pretrained_tags_by_model(name)
    told: Any = open_clip.pretrained.get_pretrained_cfg(name, tags[0]) if tags else {}
    pixels = {"mean": told.get("mean") or CLIP_MEAN, "std": told.get("std") or CLIP_STD}
    return {**config, "preprocess_cfg": {**pixels, **config.get("preprocess_cfg", {})}}


def _version() -> str:
    try:
        return version("open_clip_torch")
    except PackageNotFoundError:
        return "(not installed)"
