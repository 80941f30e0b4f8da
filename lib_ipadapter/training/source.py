"""Captioned pictures: a folder with .txt files or metadata.jsonl, or WebDataset shards (shards.py).

A picture may have a second one for the image encoder (``NAME.ref.png`` beside ``NAME.png``, or the field
``reference``): then that one is the prompt, and the first is what is to be drawn. Else one picture is both.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, ImageError
from ..pictures import images

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_GLOB = set("*?[{")


@dataclass(frozen=True)
class Item:
    """One sample. picture: the one to be drawn; reference: the one for the image encoder; both RGB."""

    key: str
    picture: Image.Image
    reference: Image.Image
    caption: str


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

    @abstractmethod
    def caption(self, index: int) -> str:
        """The caption alone."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What the sample is called."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of names, sizes and times: another one is another data set."""

    def order(self, epoch: int, seed: int) -> NDArray[np.int64]:
        """The samples' order in an epoch: a permutation."""
        return _rng(seed, epoch).permutation(len(self))


def _rng(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


def open_source(path: Path | str) -> Source:
    """A folder, a .tar file, a folder of them, or a pattern such as ``set-{000..009}.tar``. Raises DataError."""
    from .shards import ShardSource, expand

    text = str(path)
    if _GLOB & set(text) and not Path(text).exists():
        return ShardSource(expand(text))
    path = Path(path)
    if path.suffix == ".tar":
        return ShardSource([path])
    if not path.is_dir():
        raise DataError(
            path, "no such folder or .tar file; give a folder of pictures with captions, or shards"
        )
    if (path / "metadata.jsonl").is_file():
        return FolderSource(path, _from_metadata(path))
    files = sorted(p for p in path.rglob("*") if p.is_file())
    shards = [p for p in files if p.suffix == ".tar"]
    drawn = [p for p in files if p.suffix.lower() in ENDINGS]
    others = {p.with_suffix("").with_suffix(""): p for p in drawn if _is_reference(p)}
    pictures = [p for p in drawn if not _is_reference(p)]
    if shards and not pictures:
        return ShardSource(shards)
    if not pictures:
        raise DataError(path, f"no pictures in it; expected some of {', '.join(ENDINGS)}, or .tar shards")
    return FolderSource(path, [_beside(path, p, others.get(p.with_suffix(""), p)) for p in pictures])


def _is_reference(picture: Path) -> bool:
    return picture.stem.lower().endswith(".ref")


@dataclass(frozen=True)
class Entry:
    """Paths relative to the folder. caption: text, or None when it stands in ``text``."""

    picture: str
    reference: str
    caption: str | None
    text: str


def _beside(root: Path, picture: Path, other: Path) -> Entry:
    name = picture.relative_to(root).as_posix()
    return Entry(name, other.relative_to(root).as_posix(), None, str(PurePosixPath(name).with_suffix(".txt")))


def _from_metadata(root: Path) -> list[Entry]:
    path = root / "metadata.jsonl"
    try:
        # Not splitlines: a caption may hold other characters that end lines, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error}); expected JSON lines in UTF-8") from None
    found = [_line(root, path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(path, "it is empty; expected a line for each picture")
    return found


def _line(root: Path, path: Path, number: int, line: str) -> Entry:
    try:
        row: Any = json.loads(line)
        name = row["file_name"]
        reference, caption = row.get("reference") or name, caption_of(row, "text", "caption")
        good = isinstance(name, str) and isinstance(reference, str)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise DataError(path, f"line {number}: expected an object with file_name and text, got {line[:80]!r}")
    for part in (name, reference):
        if (
            PurePosixPath(part).is_absolute()
            or ".." in PurePosixPath(part).parts
            or ":" in part
            or "\\" in part
        ):
            raise DataError(path, f"line {number}: {part!r} leaves the folder; give a path below {root.name}")
    return Entry(name, reference, caption, "")


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
        if entry.caption is not None:
            return entry.caption
        try:
            return (self.root / entry.text).read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenPicture(entry.picture, f"its caption {entry.text} cannot be read: {error}") from None

    def load(self, index: int) -> Item:
        entry = self.entries[index]
        picture = decoded(entry.picture, self.root / entry.picture)
        same = entry.reference == entry.picture
        reference = picture if same else decoded(entry.picture, self.root / entry.reference)
        return Item(entry.picture, picture, reference, self.caption(index))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for entry in self.entries:
            for name in dict.fromkeys((entry.picture, entry.reference)):
                try:
                    stat = (self.root / name).stat()
                    digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
                except OSError:
                    digest.update(f"{name}\0absent\n".encode())
        return digest.hexdigest()


def caption_of(row: Any, *names: str) -> str:
    """The first of these fields of a JSON object that is there and not null, else "". Raises TypeError."""
    found = next((row[name] for name in names if row.get(name) is not None), "")
    if not isinstance(found, str):
        raise TypeError(f"a caption of type {type(found).__name__}, expected text")
    return found.strip()


def decoded(key: str, content: Path | bytes) -> Image.Image:
    """RGB. Raises BrokenPicture under the sample's name."""
    try:
        return images.load(content)
    except ImageError as error:
        raise BrokenPicture(key, str(error)) from None
