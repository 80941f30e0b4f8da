"""What a weight file is: by the config beside it, else by its shapes, else by its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..cache import LRU
from ..errors import BrokenEncoder, EncoderMissing, IPAdapterError
from .configs import config_identities, custom_spec, stated
from .eva import eva_keys, eva_shape
from .files import opened
from .layout import TowerKeys, tower_keys
from .named import looks_named, named_spec
from .spec import ENCODERS, EncoderSpec, TowerShape


@dataclass(frozen=True)
class Recognised:
    """What a weight file turned out to be. spec: None if it is no usable encoder, and then problem says why.
    custom: it has a config of its own. note: what was assumed of it."""

    path: Path
    spec: EncoderSpec | None = None
    problem: str = ""
    custom: bool = False
    note: str = ""

    def __str__(self) -> str:
        return self.problem if self.spec is None else self.spec.name


_known: LRU[Recognised] = LRU(lambda: 1024)


def forget() -> None:
    """Files are looked at again: a file that another program had locked may be readable now."""
    _known.clear()


def recognise(path: Path) -> Recognised:
    """What is in a file. Each version of the file, its configs and the registry is looked at once: opening a pickle is
    slow. Never raises IPAdapterError."""
    try:
        stat = path.stat()
    except OSError as error:
        return Recognised(path, problem=f"cannot be opened: {error.strerror}")
    key = (path, stat.st_mtime_ns, stat.st_size, config_identities(path), tuple(ENCODERS.values()))
    return _known.get(key, lambda: _recognised(path))


def _recognised(path: Path) -> Recognised:
    custom = True  # also with a config that cannot be used
    try:
        custom = custom_spec(path) is not None
        spec = spec_of(path)
    except IPAdapterError as error:
        problem = error.detail.get("kind", str(error).removeprefix(f"{path.name}: "))
        return Recognised(path, problem=problem, custom=custom or looks_named(path.stem))
    custom = custom or (spec.name == path.stem and spec.name not in ENCODERS)
    return Recognised(path, spec, custom=custom, note="" if custom else _assumed(path, spec))


def identify_encoder(path: Path | str) -> EncoderSpec | None:
    """The encoder in a file; None when it is something else. Raises BrokenEncoder or UnsafeFile when the file or its
    config cannot be read."""
    path = Path(path)
    if custom_spec(path) is None and not looks_named(path.stem):
        shape = _tower(path)[1]
        if shape is None or not any(spec.shape == shape for spec in ENCODERS.values()):
            return None
    return spec_of(path)


def spec_of(path: Path) -> EncoderSpec:
    """The encoder in a weight file. A file with an open_clip config of its name is that custom encoder, and no other,
    whatever its shapes. Raises BrokenEncoder, EncoderMissing, UnsafeFile."""
    if not os.path.isfile(path):
        raise EncoderMissing(f"{path.name}: no such file in {path.parent}; choose another encoder file")
    custom = custom_spec(path)
    if custom is None:
        return _by_shape(path) if not looks_named(path.stem) else _by_shape_or_name(path)
    known = ENCODERS.get(custom.name)
    if known is not None and (differing := _differing(custom, known)):
        raise BrokenEncoder(
            f"{path.name}: {custom.name}.json beside it describes another tower than the known encoder of this name "
            f"({', '.join(differing)}); give both files another name",
            value=custom.name,
        )
    if not custom.timm[0]:
        _whole(_tower(path)[0], custom, path)
    return known or custom


def _by_shape_or_name(path: Path) -> EncoderSpec:
    """Known shapes tell more than a name does. The name tells of what has no keys of CLIP's tower: of a file that has
    some, what is wrong with them is said."""
    keys, shape = _tower(path)
    known = any(spec.shape == shape and spec.timm[0] for spec in ENCODERS.values())
    return _by_shape(path) if keys is not None or known else named_spec(path.stem)


def _by_shape(path: Path) -> EncoderSpec:
    (keys, shape), known = _tower(path), ", ".join(ENCODERS)
    if shape is None:
        raise BrokenEncoder(
            f"{path.name}: holds no whole CLIP vision tower; expected one of {known}",
            kind="a CLIP vision tower with keys missing" if keys else "no CLIP vision tower",
        )
    same = [spec for spec in ENCODERS.values() if spec.shape == shape and bool(spec.timm[0]) == (keys is None)]
    if not same:
        raise BrokenEncoder(
            f"{path.name}: a CLIP vision tower that is not known ({shape}); expected one of {known}, or its open_clip "
            f"config beside it as {path.stem}.json"
        )
    config = stated(path, shape)
    fitting = [spec for spec in same if config is None or not config.differences(spec)]
    if config is not None and not fitting:
        raise BrokenEncoder(
            f"{path.name}: a tower of the shapes of {same[0].name}, but with "
            f"{', '.join(config.differences(same[0]))} by "
            f"its {config.file}, so it is another encoder. To use it, put its open_clip config beside it as "
            f"{path.stem}.json"
        )
    if keys is not None:  # towers from timm are looked at when they are loaded
        _whole(keys, fitting[0], path)
    return fitting[0]


def _whole(keys: TowerKeys | None, spec: EncoderSpec, path: Path) -> None:
    if keys is None:
        raise BrokenEncoder(f"{path.name}: no CLIP vision tower, which its {path.stem}.json describes")
    keys.check(spec, path.name)


def _tower(path: Path) -> tuple[TowerKeys | None, TowerShape | None]:
    """The keys of CLIP's tower in a file, if it has one; and the sizes of that, or of EVA02-CLIP's."""
    with opened(path) as (shapes, _read):
        keys, names = tower_keys(shapes), eva_keys(shapes)
        eva = eva_shape(shapes, names) if names else None
        return keys, keys.tower() if keys else eva


def _assumed(path: Path, spec: EncoderSpec) -> str:
    """What neither shapes nor a config tell; the published file is known by its size."""
    hint = spec.pretrained_hint
    if spec.timm[0] or stated(path, spec.shape) or (hint is not None and hint.size == path.stat().st_size):
        return ""
    return (
        f"{path.name} was recognised by its shapes; that it has {spec.name}'s activation ({spec.activation}), "
        "mean and std "
        "is assumed"
    )


def _differing(custom: EncoderSpec, known: EncoderSpec) -> list[str]:
    names = ("shape", "image_size", "heads", "activation", "mean", "std", "prefix", "timm")
    return [f"{name} {getattr(custom, name)}" for name in names if getattr(custom, name) != getattr(known, name)]
