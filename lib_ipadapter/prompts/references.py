"""References that are saved under a name: embeds, and folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from ..errors import UnitError, printable
from ..pictures import images
from ..unit.names import checked_name, in_text
from .embeds import Embeds


class ReferenceStore(Protocol):
    """Finds saved references."""

    def embeds(self, name: str) -> Embeds:
        """Raises UnitError, FileError."""

    def folder(self, name: str) -> list[Path]:
        """The folder's pictures. Raises UnitError."""


class NoStore:
    """Where nothing is saved under a name."""

    def embeds(self, name: str) -> Embeds:
        """Raises UnitError."""
        raise UnitError("embeds", name, "a picture: no embeds are saved here")

    def folder(self, name: str) -> list[Path]:
        """Raises UnitError."""
        raise UnitError("folder", name, "pictures: there are no folders here")


class PictureFolders:
    """The folders in a folder, which need not exist yet; only the pictures in them count, not those below."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """In alphabetical order."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        return in_text(path.name for path in found if path.is_dir() and path.name[0] != ".")

    def pictures(self, name: Any) -> list[Path]:
        """By name, as the WebUI sorts files: 2 before 10. Raises UnitError."""
        return [path for path in self._files(name) if path.suffix.lower() in images.SUFFIXES]

    def others(self, name: Any) -> list[str]:
        """The names of the files that are not pictures. Raises UnitError."""
        return [printable(path.name) for path in self._files(name) if path.suffix.lower() not in images.SUFFIXES]

    def _files(self, name: Any) -> list[Path]:
        folder = self.root / checked_name("folder", name)
        if not folder.is_dir():
            known = ", ".join(self.names()[:20]) or "there is none yet"
            raise UnitError("folder", name, f"the name of a folder in {self.root.name}: {known}")
        return in_order(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def in_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers as numbers."""

    def key(path: Path) -> list[Any]:
        parts = re.split("([0-9]+)", path.name.lower())
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(paths, key=key)
