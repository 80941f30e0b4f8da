"""Numbered captioned pictures, and those of a folder (files/captioned.py). WebDataset shards are in shards.py.

Where a picture has a reference of its own, that one is the prompt and the first is the target.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, ImageError
from ..files import captioned
from ..files.captioned import Entry
from ..pictures import images


@dataclass(frozen=True)
class Item:
    """One sample. picture: the target; reference: the one for the image encoder; both RGB, over white. cut_out: the
    reference as RGBA, where it has an alpha channel."""

    key: str
    picture: Image.Image
    reference: Image.Image
    caption: str
    cut_out: Image.Image | None = None


class BrokenPicture(Exception):
    """A picture that cannot be read."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both, so that it survives pickling
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class Source(ABC):
    """Numbered samples; goes into other processes by pickling."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Item:
        """Raises BrokenPicture."""

    def pictures(self, index: int) -> Item:
        """``load``, also where the caption cannot be read: without it."""
        return self.load(index)

    @abstractmethod
    def caption(self, index: int) -> str:
        """The caption alone."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What the sample is called."""

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the target, without decoding it where its file says so. Raises BrokenPicture."""
        return self.load(index).picture.size

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of names, sizes and times of the files: what was made of them is made again for another one."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hex digest of the samples' names and sizes, wherever the files are and whenever they were copied."""

    def order(self, epoch: int, seed: int) -> NDArray[np.int64]:
        """The samples' order in an epoch: a permutation."""
        return rng(seed, epoch).permutation(len(self))


def rng(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


class FolderSource(Source):
    """Pictures in a folder."""

    def __init__(self, root: Path, entries: Iterable[Entry]) -> None:
        self.root, self.entries = root, list(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        return self.entries[index].picture

    def caption(self, index: int) -> str:
        entry = self.entries[index]
        try:
            return captioned.caption(self.root, entry)
        except DataError as error:
            raise BrokenPicture(entry.picture, f"its caption {error}") from None

    def size(self, index: int) -> tuple[int, int]:
        entry = self.entries[index]
        return sized(entry.picture, self.root / entry.picture)

    def load(self, index: int) -> Item:
        return replace(self.pictures(index), caption=self.caption(index))

    def pictures(self, index: int) -> Item:
        entry = self.entries[index]
        other = None if entry.reference == entry.picture else self.root / entry.reference
        return item_of(entry.picture, self.root / entry.picture, other)

    @property
    def fingerprint(self) -> str:
        return self._digest(((e.picture, e.reference) for e in self.entries), times=True)

    @property
    def identity(self) -> str:
        captions = hashlib.sha256("\0".join(e.caption or "" for e in self.entries).encode()).hexdigest()
        names = ((e.picture, e.reference, e.text) for e in self.entries)
        return f"{self._digest(names, times=False)[:32]}{captions[:32]}"

    def _digest(self, names: Iterable[tuple[str, ...]], times: bool) -> str:
        digest = hashlib.sha256()
        for group in names:
            for name in dict.fromkeys(filter(None, group)):
                digest.update(f"{name}\0{described(self.root / name, times)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def described(path: Path, times: bool) -> str:
    """Size and, with ``times``, time of change of a file; "absent" without one."""
    try:
        stat = path.stat()
    except OSError:
        return "absent"
    return f"{stat.st_size}\0{stat.st_mtime_ns}" if times else f"{stat.st_size}"


def item_of(key: str, picture: Path | bytes, reference: Path | bytes | None) -> Item:
    """The sample, decoded, without its caption. reference: None where the picture is its own. Raises BrokenPicture."""
    try:
        target = images.load_cut_out(picture)
        other = target if reference is None else images.load_cut_out(reference)
    except ImageError as error:
        raise BrokenPicture(key, str(error)) from None
    seen = images.over(target, images.WHITE)
    shown = seen if reference is None else images.over(other, images.WHITE)
    return Item(key, seen, shown, "", other if other.mode == "RGBA" else None)


def sized(key: str, content: Path | bytes) -> tuple[int, int]:
    """(width, height). Raises BrokenPicture under the sample's name."""
    try:
        return images.size(content)
    except ImageError as error:
        raise BrokenPicture(key, str(error)) from None
