"""The adapters on the user's disk: a list of names, and the file behind each. Requests only ever pick
from this list, so no path from outside is opened."""

from __future__ import annotations

import difflib
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AdapterMissing

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# What only adapter files hold, in any of the layouts that checkpoint.py reads or names.
_MARKS = (b"ip_adapter", b"image_proj", b"adapter_modules", b"id_adapter")
_MAX_HEADER = 32 << 20
ASIDE = ("embeds", "references")  # what is kept beside the adapters and is none


@dataclass(frozen=True)
class Folder:
    """A folder to search. ``shared``: it holds other kinds of models too, so each file is looked into."""

    path: Path
    shared: bool = False


class Library:
    """Names of adapter files. ``refresh`` reads the folders again."""

    def __init__(self, folders: Sequence[Folder] = ()) -> None:
        self.folders = tuple(folders)
        self._files: dict[str, Path] = {}
        self._looked: dict[tuple[Path, float, int], bool] = {}

    def refresh(self, folders: Sequence[Folder] | None = None) -> None:
        """Lists the folders again, others if given."""
        if folders is not None:
            self.folders = tuple(folders)
        found: dict[str, Path] = {}
        for folder in self.folders:
            for path in self._adapters(folder):
                # The first folder wins, as everywhere in the WebUI.
                found.setdefault(path.relative_to(folder.path).as_posix(), path)
        self._files = dict(sorted(found.items(), key=lambda item: item[0].lower()))

    def _adapters(self, folder: Folder) -> Iterable[Path]:
        if not folder.path.is_dir():
            return
        for path in sorted(folder.path.rglob("*")):
            if path.relative_to(folder.path).parts[0] in ASIDE:
                continue
            if path.suffix.lower() in SUFFIXES and path.is_file() and (not folder.shared or self._look(path)):
                yield path

    def _look(self, path: Path) -> bool:
        stat = path.stat()
        key = (path, stat.st_mtime, stat.st_size)
        if key not in self._looked:
            self._looked[key] = looks_like_adapter(path)
        return self._looked[key]

    def names(self) -> list[str]:
        """Names as the panel and the API list them: without extension where that is unambiguous."""
        stems = [_stem(name) for name in self._files]
        return [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, self._files)]

    def find(self, name: str) -> Path:
        """The file of a listed name, with or without extension, in any case. Raises AdapterMissing."""
        wanted = name.strip().replace("\\", "/")
        for same in (str, str.lower):
            for listed, path in self._files.items():
                if same(wanted) in (same(listed), same(_stem(listed))):
                    return path
        raise AdapterMissing(self._missing(wanted), field="model", value=name, expected=self.names())

    def _missing(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        folders = ", ".join(str(f.path) for f in self.folders)
        return (
            f"model: no adapter named {name!r} among the {len(self._files)} found. {hint}Put the file into one of "
            f"{folders} and refresh the list"
        )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def looks_like_adapter(path: Path) -> bool:
    """Whether the file's header speaks of an image-prompt adapter; cheap, and runs no code of the file."""
    try:
        header = _safetensors_header(path) if path.suffix == ".safetensors" else _pickle_header(path)
    except (OSError, struct.error, zipfile.BadZipFile, KeyError):
        return False
    return any(mark in header for mark in _MARKS)


def _safetensors_header(path: Path) -> bytes:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return file.read(min(length, _MAX_HEADER))


def _pickle_header(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "")
        with archive.open(name) as file:
            return file.read(_MAX_HEADER)
