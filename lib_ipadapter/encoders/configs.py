"""JSON files beside an encoder's weights: a custom tower, or what shapes do not tell of a known one.

``mine.safetensors`` and ``mine.json`` make the encoder ``mine``. The JSON is an open_clip config
(``{"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 8}}``), with
``preprocess_cfg`` (``mean``, ``std``) where those differ from CLIP's. Towers from timm: timm_tower.py.

Downloads keep their own configs: Hugging Face's ``config.json`` and ``preprocessor_config.json`` beside
``model.safetensors``, open_clip's ``open_clip_config.json`` beside ``open_clip_*``. They state activation, mean and
std.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BrokenEncoder, FileError
from ..files.disk import open_regular
from .listing import walk
from .spec import CLIP_MEAN, CLIP_STD, EncoderSpec, TowerShape
from .timm_tower import timm_spec

_MAX_BYTES = 1 << 20  # of a config
_HUGGING_FACE = re.compile(r"(model|pytorch_model)(\.fp16)?\.(safetensors|bin)")
_ACTIVATIONS = {"quick_gelu": "QuickGELU", "gelu": "GELU"}


@dataclass(frozen=True)
class Stated:
    """What a download's config states; None: it does not say. file: the config's name."""

    file: str
    activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def differences(self, spec: EncoderSpec) -> list[str]:
        """In what a tower with this config differs from ``spec``."""
        pairs = {
            f"activation {self.activation}": (self.activation, spec.activation),
            f"mean {_rounded(self.mean)}": (_rounded(self.mean), _rounded(spec.mean)),
            f"std {_rounded(self.std)}": (_rounded(self.std), _rounded(spec.std)),
        }
        return [text for text, (stated, known) in pairs.items() if stated is not None and stated != known]


def _rounded(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(value, 4) for value in values)


def custom_spec(weights: Path) -> EncoderSpec | None:
    """The custom encoder of a weight file, by the open_clip config of its name; None without such a config. A JSON file
    of another kind is passed over. Raises BrokenEncoder for a config that cannot be used."""
    path = weights.with_suffix(".json")
    identity = _identity(path)
    if identity is None:
        return None
    spec, problem = _custom(path, *identity)
    if problem:
        raise BrokenEncoder(problem, value=path.name)
    return spec


def stated(weights: Path, shape: TowerShape) -> Stated | None:
    """What the config of a download says of a tower of this shape; None where none is beside it."""
    if _HUGGING_FACE.fullmatch(weights.name):
        return _by_hugging_face(weights.parent, shape)
    if weights.name.startswith("open_clip_"):
        return _by_open_clip(weights.parent / "open_clip_config.json", shape)
    return None


def config_identities(weights: Path) -> tuple[Any, ...]:
    """Time and size of each JSON file that decides what a weight file is."""
    names = (
        weights.with_suffix(".json").name,
        "config.json",
        "preprocessor_config.json",
        "open_clip_config.json",
    )
    return tuple(_identity(weights.with_name(name)) for name in names)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def forget_configs() -> None:
    """Configs are read again: a package that one needs may have been installed since."""
    _custom.cache_clear()


@functools.lru_cache(maxsize=256)
def _custom(path: Path, _mtime: int, size: int) -> tuple[EncoderSpec | None, str]:
    """(spec, "") or (None, what is wrong), once for each version of a config: timm's towers take long to build."""
    if size > _MAX_BYTES:
        return None, ""
    try:
        config = _parsed(path)
    except (FileError, OSError, ValueError, RecursionError) as error:
        return None, f"{path.name}: no readable JSON ({error}); correct it, or remove it"
    config = _model_config(config)
    if config is None:
        return None, ""
    try:
        return _spec(path.stem, config), ""
    except BrokenEncoder as error:
        return None, f"{path.name}: {error}"
    except Exception as error:  # a foreign config may be anything, and timm raises all kinds
        return None, (
            f"{path.name}: {error or type(error).__name__} in an open_clip config; expected embed_dim and vision_cfg "
            "(image_size, layers, width, patch_size) of a vision transformer"
        )


def _model_config(config: Any) -> dict[str, Any] | None:
    """An open_clip config, also in the layout of open_clip's hub files; None for another JSON."""
    if isinstance(config, dict) and isinstance(config.get("model_cfg"), dict):
        config = {**config, **config["model_cfg"]}
    return config if isinstance(config, dict) and "vision_cfg" in config else None


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
    ).checked()


def _by_hugging_face(folder: Path, shape: TowerShape) -> Stated | None:
    config = _read(folder / "config.json")
    vision = config.get("vision_config", config)
    if not isinstance(vision, Mapping) or not _agrees(
        vision, {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "patch_size": shape.patch}
    ):
        return None
    activation = vision.get("hidden_act")
    pixels = _read(folder / "preprocessor_config.json")
    return Stated(
        "config.json",
        None if activation is None else _ACTIVATIONS.get(str(activation), str(activation)),
        _numbers(pixels.get("image_mean")),
        _numbers(pixels.get("image_std")),
    )


def _by_open_clip(path: Path, shape: TowerShape) -> Stated | None:
    config = _model_config(_read(path)) or {}
    vision = config.get("vision_cfg")
    if not isinstance(vision, Mapping) or not _agrees(vision, {"width": shape.width, "layers": shape.layers}):
        return None
    pixels = config.get("preprocess_cfg")
    pixels = pixels if isinstance(pixels, Mapping) else {}
    activation = "QuickGELU" if config.get("quick_gelu") else "GELU"
    return Stated(path.name, activation, _numbers(pixels.get("mean")), _numbers(pixels.get("std")))


def _agrees(config: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether the config is that of a tower of these sizes; Hugging Face leaves out what is the default."""
    return any(name in config for name in sizes) and all(config.get(name, size) == size for name, size in sizes.items())


def _numbers(values: Any) -> tuple[float, ...] | None:
    usable = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
    return tuple(float(value) for value in values) if usable and values else None


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty for one that is not there or cannot be read."""
    try:
        config = _parsed(path) if path.stat().st_size < _MAX_BYTES else None
    except (FileError, OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _parsed(path: Path) -> Any:
    """The JSON in a regular file, with or without a byte order mark. Raises FileError, OSError, ValueError."""
    with open_regular(path, "a text file") as file:
        return json.loads(file.read(_MAX_BYTES).decode("utf-8-sig"))


# text towers


def register_archs(folders: Iterable[Path]) -> list[str]:
    """Adds the open_clip configs of both towers in these folders and below to open_clip's list, under the files' names;
    returns the new names. A checkpoint's yaml may then name one as its text tower (``arch``). Other JSON files and
    broken ones are passed over; without any such config nothing is imported."""
    new = []
    for path in sorted(path for folder in folders for path in walk(folder).files if path.suffix == ".json"):
        if _has_both_towers(path) and register_arch(path):
            new.append(path.stem)
    return new


def register_arch(path: Path) -> bool:
    """Adds one config to open_clip's list; False if its name is there already. Raises BrokenEncoder."""
    import open_clip

    if open_clip.get_model_config(path.stem) is not None:
        return False
    # Checked first: open_clip reads all configs again at each registration, and a broken one would break all of them.
    if not _has_both_towers(path):
        raise BrokenEncoder(
            f"{path.name}: expected an open_clip config with embed_dim, vision_cfg and text_cfg; give the one "
            "that the text tower was made with",
            value=path.name,
        )
    open_clip.add_model_config(path)
    return True


def _has_both_towers(path: Path) -> bool:
    config = _read(path)
    return all(
        isinstance(config.get(key), kind)
        for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    )
