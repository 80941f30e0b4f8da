"""Encoders of people's own: weights with an open_clip model config of the same name beside them.

``mine.safetensors`` and ``mine.json`` make the encoder ``mine``. The JSON is open_clip's own
(``{"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 8}}``), with
``preprocess_cfg`` (``mean``, ``std``) where those differ from CLIP's. Towers of timm's: timm_tower.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import BrokenEncoder
from .find import _walk
from .spec import CLIP_MEAN, CLIP_STD, EncoderSpec, for_shape, register
from .timm_tower import timm_spec

_MOST = 1 << 20  # bytes of a config


def register_configs(folders: Iterable[Path]) -> None:
    """Registers every open_clip config in these folders that has weights beside it, or of a weight file
    itself. A JSON file of another kind is passed over. Raises BrokenEncoder."""
    for folder in folders:
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else [folder.with_suffix(".json")]:
            if path.is_file() and any(
                path.with_suffix(s).is_file() for s in (".safetensors", ".bin", ".pt", ".pth")
            ):
                register_config(path)


def register_archs(folders: Iterable[Path]) -> list[str]:
    """Makes the open_clip configs of both towers in these folders and below known to open_clip itself, under
    the files' names; the names that are new. A checkpoint's yaml may then name one as its text tower
    (``arch``). Other JSON files, broken ones too, are passed over; with no such config nothing is imported."""
    new = []
    for path in sorted(path for folder in folders for path in _walk(folder) if path.suffix == ".json"):
        if _is_whole(path) and register_arch(path):
            new.append(path.stem)
    return new


def register_arch(path: Path) -> bool:
    """Makes one config known to open_clip; False when its name is known already. Raises BrokenEncoder."""
    import open_clip

    if open_clip.get_model_config(path.stem) is not None:
        return False
    # Checked first: open_clip reads all configs again at each registration and would stumble over this one for good.
    if not _is_whole(path):
        raise BrokenEncoder(
            f"{path.name}: expected an open_clip config with embed_dim, vision_cfg and text_cfg; give the one "
            "that the text tower was made with",
            value=path.name,
        )
    open_clip.add_model_config(path)
    return True


def _is_whole(path: Path) -> bool:
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < _MOST else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and all(
        isinstance(config.get(key), kind)
        for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    )


def register_config(path: Path) -> EncoderSpec | None:
    """Registers one config, unless a tower of its shape is known already; None when the file is no
    open_clip config. Raises BrokenEncoder."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or "vision_cfg" not in config:
        return None
    try:
        spec = _spec(path.stem, config)
        return for_shape(spec.shape) or register(spec)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BrokenEncoder(
            f"{path.name}: {error} in an open_clip config with embed_dim and vision_cfg "
            "(image_size, layers, width, patch_size)"
        ) from None


def _spec(name: str, config: dict[str, Any]) -> EncoderSpec:
    if "timm_model_name" in config["vision_cfg"]:
        return timm_spec(name, config)
    vision, pixels = config["vision_cfg"], config.get("preprocess_cfg", {})
    mean, std = (tuple(pixels.get(key, default)) for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    return EncoderSpec(
        name=name,
        image_size=int(vision["image_size"]),
        patch=int(vision["patch_size"]),
        width=int(vision["width"]),
        layers=int(vision["layers"]),
        heads=int(vision["width"]) // int(vision.get("head_width", 64)),
        embed_dim=int(config["embed_dim"]),
        mlp_ratio=float(vision.get("mlp_ratio", 4.0)),
        quick_gelu=bool(config.get("quick_gelu", False)),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
    )
