"""The adapter files on the user's disk: their names, and the file behind each. Requests only ever pick from this list,
so no path from outside is opened."""

from __future__ import annotations

import contextlib
import difflib
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AdapterMissing, FileError, UnsafeFile
from .disk import open_regular
from .pickles import MAX_PICKLE, entry_begin, pickle_entry
from .tensors import MAX_HEADER, SUFFIXES
from .unpickler import PickleRefused

# What only adapter files name, in any of the layouts that adapters/layout.py reads or adapters/variant.py names
_MARKS = (b"ip_adapter", b"image_proj", b"adapter_modules", b"id_adapter", b"encoder_hid_proj")
_STREAM = 1 << 20  # bytes at the start of an older pickle that name its tensors
# folders beside the adapters: but for training they hold none, and what a training made is listed when it is over
ASIDE = ("embeds", "references", "training", "evaluations")


Version = tuple[Path, int, int]  # of a file: its path, time (ns) and size


@dataclass(frozen=True)
class Folder:
    """A folder to search. ``shared``: it holds other kinds of models too, so each file is looked into. ``create``: it
    is made if it does not exist, for users to put their files into."""

    path: Path
    shared: bool = False
    create: bool = False


class Library:
    """Names of adapter files. ``refresh`` reads the folders again."""

    def __init__(self, folders: Sequence[Folder] = ()) -> None:
        self.folders = tuple(folders)
        self._files: dict[str, Path] = {}
        self._looked: dict[Version, bool] = {}

    def refresh(self, folders: Sequence[Folder] | None = None) -> None:
        """Lists the folders again, others if given. No file and no folder in them makes it fail."""
        if folders is not None:
            self.folders = tuple(folders)
        found: dict[str, Path] = {}
        looked = self._looked
        self._looked = {}
        for folder in self.folders:
            if folder.create:
                with contextlib.suppress(OSError):
                    folder.path.mkdir(parents=True, exist_ok=True)
            for path in self._adapters(folder, looked):
                # The first folder wins, as everywhere in the WebUI.
                found.setdefault(utf8_name(path.relative_to(folder.path).as_posix()), path)
        self._files = dict(sorted(found.items(), key=lambda item: item[0].lower()))

    def _adapters(self, folder: Folder, looked: dict[Version, bool]) -> Iterable[Path]:
        for key in versions_below(folder.path, ASIDE):
            if key[0].is_file() and (not folder.shared or self._look(key, looked)):
                yield key[0]

    def _look(self, key: Version, looked: dict[Version, bool]) -> bool:
        """Whether a file is an adapter; each version of a file is looked into once."""
        try:
            self._looked[key] = looked[key] if key in looked else looks_like_adapter(key[0])
        except FileError:  # that may pass: a program that copies or checks it has it open
            return False
        return self._looked[key]

    def names(self) -> list[str]:
        """Names as the panel and the API list them: without extension where that is unambiguous."""
        stems = [_stem(name) for name in self._files]
        return [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, self._files, strict=True)]

    def find(self, name: str) -> Path:
        """The file of a listed name, with or without extension, in any case. Raises AdapterMissing."""
        wanted = name.strip().replace("\\", "/")
        for same, asked in ((str, name), (str, wanted), (str.lower, wanted)):
            for listed, path in self._files.items():
                if same(asked) in (same(listed), same(_stem(listed))):
                    return path
        raise AdapterMissing(self._missing(wanted), field="model", value=name, expected=self.names())

    def _missing(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        # An extension's folder is named where the extension is: made by hand, it would look like an extension.
        folders = ", ".join(str(f.path) for f in self.folders if not f.shared or f.path.is_dir())
        return (
            f"model: no adapter named {name!r} among the {len(self._files)} found. {hint}Put the file into one of "
            f"{folders} and refresh the list"
        )


def utf8_name(name: str) -> str:
    """A name that JSON and the page can show: bytes that are no UTF-8 (an archive of another system) are marked."""
    return os.fsencode(name).decode("utf-8", "replace")


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def versions_below(folder: Path, aside: Sequence[str] = ()) -> Iterator[Version]:
    """The files of tensors in ``files_below``, by their endings."""
    for path in files_below(folder, aside):
        if path.suffix.lower() in SUFFIXES:
            with contextlib.suppress(OSError):  # gone since, or a broken link
                stat = path.stat()
                yield path, stat.st_mtime_ns, stat.st_size


def files_below(folder: Path, aside: Sequence[str] = ()) -> Iterator[Path]:
    """The files in a folder and below, in order. Links to folders are followed, each folder once, behind the folders
    that are no links; ``aside`` are folders directly in ``folder`` that are left out."""
    visited, linked = set(), [str(folder)]
    while linked:
        for root, below, names in os.walk(linked.pop(0)):
            real = os.path.realpath(root)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below[:] = sorted(name for name in below if Path(root) != folder or name not in aside)
            linked += [found for name in below if os.path.islink(found := os.path.join(root, name))]
            yield from (Path(root, name) for name in sorted(names))


def looks_like_adapter(path: Path) -> bool:
    """Whether the names in a file speak of an image-prompt adapter. Raises FileError for one that cannot be opened."""
    return mentions(path, _MARKS)


def mentions(path: Path, marks: Sequence[bytes]) -> bool:
    """Whether any of ``marks`` is among the names in a file of tensors; cheap, and runs no code of the file. False for
    what is no such file. Raises FileError for one that cannot be opened."""
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data[:16]
            if start[8:9] == b"{":
                header = data[8 : 8 + min(struct.unpack("<Q", start[:8])[0], MAX_HEADER)]
            elif start[:2] == b"PK":
                entry, _ = pickle_entry(file, len(data))
                begin = entry_begin(data, entry)
                header = data[begin : begin + min(entry.file_size, MAX_PICKLE)]
            else:
                header = data[:_STREAM] if start[:1] == b"\x80" else b""
    except (UnsafeFile, PickleRefused, OSError, ValueError):
        return False
    return any(mark in header for mark in marks)
