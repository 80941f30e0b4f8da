"""Which file on the disk is which encoder: by shapes, whatever its name."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BrokenEncoder, EncoderMissing, IPAdapterError
from .files import SUFFIXES, opened
from .layout import tower_keys
from .spec import ENCODERS, EncoderSpec, TowerShape, for_file, for_shape


@dataclass(frozen=True)
class _Looked:
    """What a file turned out to be: a tower of some shape, or not usable because of ``problem``."""

    shape: TowerShape | None = None
    problem: str = ""

    @property
    def spec(self) -> EncoderSpec | None:
        return for_shape(self.shape) if self.shape else None

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if self.shape is None:
            return "no CLIP vision tower"
        return self.spec.name if self.spec else f"a CLIP vision tower that is not known: {self.shape}"


def identify_encoder(path: Path | str) -> EncoderSpec | None:
    """The encoder in a file, by its shapes; None when it is something else.

    Raises BrokenEncoder or UnsafeFile when the file cannot be read.
    """
    named = for_file(Path(path).stem)
    if named is not None:
        return named
    with opened(Path(path)) as (shapes, _read):
        keys = tower_keys(shapes)
        shape = keys.tower() if keys else None
    return for_shape(shape) if shape else None


def find_encoder(spec_name: str, folders: Sequence[Path]) -> Path:
    """The file of a registered encoder in ``folders`` (searched with all below; files may stand there too).

    The first folder wins, in it safetensors before pickles. Raises EncoderMissing, which names the
    folders, what was in them, and the download.
    """
    seen: list[str] = []
    for folder in folders:
        for path in _candidates(Path(folder)):
            looked = _look(path)
            if looked.spec is not None and looked.spec.name == spec_name:
                return path
            seen.append(f"{path.name} ({looked})")
    raise EncoderMissing(
        _missing(spec_name, folders, seen), encoder=spec_name, folders=[str(f) for f in folders], seen=seen
    )


def _missing(name: str, folders: Sequence[Path], seen: Sequence[str], most: int = 12) -> str:
    spec = ENCODERS.get(name)
    if spec is None:
        return f"no encoder named {name!r} is known; known are {', '.join(ENCODERS)}"
    places = ", ".join(str(folder) for folder in folders) or "no folder"
    more = f" and {len(seen) - most} more" if len(seen) > most else ""
    files = f"; seen there: {', '.join(seen[:most])}{more}" if seen else "; no weight file is there"
    hint = spec.pretrained_hint
    where = f"download it from huggingface.co: {hint}" if hint else f"it needs weights of {spec.shape}"
    target = f" and put it into {folders[0]} under any name" if folders else ""
    return f"the image encoder {name} was not found in {places}{files}. {where[0].upper()}{where[1:]}{target}"


def _candidates(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    files = [path for path in _walk(folder) if path.suffix.lower() in SUFFIXES]
    return sorted(files, key=lambda path: (path.suffix.lower() != ".safetensors", str(path)))


def _walk(folder: Path) -> Iterator[Path]:
    """Files below, links to folders followed once (people link their model folders, even in circles)."""
    visited = set()
    for root, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            below.clear()
            continue
        visited.add(real)
        yield from (Path(root, name) for name in names)


def _look(path: Path) -> _Looked:
    named = for_file(path.stem)
    if named is not None:
        return _Looked(named.shape)
    try:
        stat = path.stat()
    except OSError as error:
        return _Looked(problem=f"cannot be opened: {error.strerror}")
    return _look_once(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def _look_once(path: Path, _mtime: int, _size: int) -> _Looked:
    """Opening a pickle is slow, so each version of a file is looked into once. Shapes are kept, not
    specs, because a tower may be registered later."""
    try:
        with opened(path) as (shapes, _read):
            keys = tower_keys(shapes)
    except IPAdapterError as error:
        return _Looked(problem=str(error).removeprefix(f"{path.name}: "))
    if keys is None:
        return _Looked()
    shape = keys.tower()
    spec = for_shape(shape) if shape else None
    if shape is None:
        return _Looked(problem="a CLIP vision tower with keys missing")
    try:
        keys.check(spec, path.name) if spec else None
    except BrokenEncoder as error:
        return _Looked(problem=str(error).removeprefix(f"{path.name}: "))
    return _Looked(shape)
