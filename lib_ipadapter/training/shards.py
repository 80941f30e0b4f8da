"""WebDataset shards: tar files whose members of one basename (up to the first dot) are one sample.

The headers are read once; from then on any sample is one seek away, so that a training goes on in the
middle of an epoch without reading what came before. An epoch goes shard by shard, in a new order each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from glob import iglob
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, FileError
from ..files.captioned import caption_in, caption_of
from ..files.disk import open_regular
from ..pictures import images
from ..pictures.images import SUFFIXES
from .source import BrokenPicture, Item, Source, described, item_of, rng, sized

_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MOST_SHARDS = 100_000
_MOST_BYTES = 2 * images.MAX_BYTES  # of a member: what is larger is no picture and no caption that is read
_KINDS = (*SUFFIXES, ".txt", ".json")


@dataclass(frozen=True)
class Place:
    """Where a member's bytes are: shard's number, offset and size (bytes)."""

    shard: int
    offset: int
    size: int


@dataclass
class _Sample:
    key: str
    parts: dict[str, Place] = field(default_factory=dict)  # "picture", "reference", ".txt", ".json"


def expand(pattern: str) -> list[Path]:
    """Files of ``{000..009}``, whether they are there or not, and of ``*``; sorted. Raises DataError when there
    are none."""
    names = [pattern]
    while match := _BRACES.search(names[0]):
        first, last, digits = int(match[1]), int(match[2]), len(match[1])
        if first > last:
            raise DataError(pattern, f"{match[0]} counts from {first} down to {last}; give the lower number first")
        if (count := len(names) * (last - first + 1)) > _MOST_SHARDS:
            raise DataError(pattern, f"names {count} shards; at most {_MOST_SHARDS} are opened, use larger ones")
        names = [_BRACES.sub(f"{n:0{digits}d}", name, count=1) for name in names for n in range(first, last + 1)]
    found: set[Path] = set()
    for name in names:
        literal = os.path.isfile(name) or not set(name) & set("*?[")
        found |= {Path(path) for path in ([name] if literal else islice(iglob(name), _MOST_SHARDS))}
    if not found:
        raise DataError(pattern, "no file matches; give .tar shards, as set-{000..009}.tar or set-*.tar")
    return sorted(found)


class ShardSource(Source):
    """Samples in tar files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.samples: list[_Sample] = []
        self.firsts: list[int] = []  # of each shard's samples
        self._files: dict[tuple[int, int], Any] = {}
        for number, path in enumerate(self.paths):
            self.firsts.append(len(self.samples))
            self.samples += _index(number, path)
        if not self.samples:
            raise DataError(self.paths[0], "no pictures in the shards; expected members such as 0001.jpg, 0001.txt")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files stay with their process

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, epoch: int, seed: int) -> NDArray[np.int64]:
        chance = rng(seed, epoch)
        ends = [*self.firsts[1:], len(self.samples)]
        parts = [np.arange(a, b) for a, b in zip(self.firsts, ends, strict=True)]
        return np.concatenate([chance.permutation(parts[i]) for i in chance.permutation(len(parts))])

    def key(self, index: int) -> str:
        return self.samples[index].key

    def caption(self, index: int) -> str:
        sample = self.samples[index]
        try:
            if ".txt" in sample.parts:
                return caption_in(self._read(sample.parts[".txt"]))
            if ".json" in sample.parts:
                return caption_of(json.loads(self._read(sample.parts[".json"])), "caption", "text")
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise BrokenPicture(sample.key, f"its caption cannot be read: {error}") from None
        return ""

    def size(self, index: int) -> tuple[int, int]:
        sample = self.samples[index]
        try:
            return sized(sample.key, self._read(sample.parts["picture"]))
        except OSError as error:
            raise BrokenPicture(sample.key, f"its shard cannot be read: {error}") from None

    def load(self, index: int) -> Item:
        return replace(self.pictures(index), caption=self.caption(index))

    def pictures(self, index: int) -> Item:
        sample = self.samples[index]
        try:
            picture, other = self._read(sample.parts["picture"]), sample.parts.get("reference")
            reference = self._read(other) if other else None
        except OSError as error:
            raise BrokenPicture(sample.key, f"its shard cannot be read: {error}") from None
        return item_of(sample.key, picture, reference)

    def _read(self, place: Place) -> bytes:
        # A forked process has its parent's files, but must not move the place where the parent reads.
        where = os.getpid(), place.shard
        if where not in self._files:
            self.close()  # one at a time: an epoch goes shard by shard
            self._files[where] = self.paths[place.shard].open("rb")
        file = self._files[where]
        file.seek(place.offset)
        content: bytes = file.read(min(place.size, _MOST_BYTES))
        return content

    def close(self) -> None:
        """Closes the shard that is open."""
        while self._files:
            self._files.popitem()[1].close()

    @property
    def fingerprint(self) -> str:
        return self._digest(times=True)

    @property
    def identity(self) -> str:
        return self._digest(times=False)

    def _digest(self, times: bool) -> str:
        lines = (f"{path.name}\0{described(path, times)}\n" for path in self.paths)
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _index(number: int, path: Path) -> list[_Sample]:
    """The shard's samples that have a picture, in the shard's order."""
    found: dict[str, _Sample] = {}
    try:
        with open_regular(path, "a tar file") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            at = -1
            for member in tar:
                if member.size < 0 or tar.offset <= at:  # tarfile would go round in circles
                    raise tarfile.ReadError(f"{member.name} ends before it begins")
                at = tar.offset
                if member.isfile():
                    _take(found, member.name, path, Place(number, member.offset_data, member.size))
            end = tar.offset
        whole = _is_end(path, end)
    except FileError as error:
        raise DataError(path, str(error).removeprefix(f"{path.name}: ")) from None
    except Exception as error:  # tarfile raises all kinds on damaged headers
        raise DataError(path, f"cannot be read as a tar file ({error}); make or download it again") from None
    if not whole:
        raise DataError(path, f"the tar file is cut off or damaged at byte {end}; make or download it again")
    return [sample for sample in found.values() if "picture" in sample.parts]


def _is_end(path: Path, offset: int) -> bool:
    """Whether the mark of a tar's end is there: tarfile stops without a word at a header that is cut or damaged."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _take(found: dict[str, _Sample], name: str, path: Path, place: Place) -> None:
    folder, _, base = name.rpartition("/")
    stem, _, endings = base.partition(".")
    endings = f".{endings.lower()}"
    second = endings.startswith(".ref.")
    ending = endings[len(".ref") :] if second else endings
    if not stem or ending not in _KINDS:
        return
    sample = found.setdefault(f"{folder}/{stem}", _Sample(f"{path.name}/{folder}/{stem}".replace("//", "/")))
    part = ("reference" if second else "picture") if ending in SUFFIXES else ending
    sample.parts.setdefault(part, place)
