"""Saved embeds and folders of pictures beside the adapters. A request gives their names, never a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnitError
from ..prompts.embeds import Embeds, EmbedsFolder
from ..prompts.references import PictureFolders
from ..unit.names import Named

Encode = Callable[[str, Mapping[str, Any], str], Embeds]  # (name, unit object, title)


class HostStore:
    """``ReferenceStore`` of the WebUI: ``embeds`` and ``references`` in the folder of the adapters."""

    def __init__(self, folder: Path, encode: Encode) -> None:
        self.saved = EmbedsFolder(folder / "embeds")
        self.folders = PictureFolders(folder / "references")
        self._encode = encode

    def embeds(self, name: str) -> Embeds:
        """Raises UnitError, FileError."""
        return self.saved.load(name)

    def folder(self, name: str) -> list[Path]:
        """Raises UnitError."""
        return self.folders.pictures(name)

    def names(self) -> list[Named]:
        """All saved references, embeds first."""
        embeds, folders = self.saved.names(), self.folders.names()
        return [*(Named("embeds", name) for name in embeds), *(Named("folder", name) for name in folders)]

    def check(self, named: Named) -> None:
        """Raises UnitError for a name that is not there, FileError for a broken file."""
        self.embeds(named.name) if named.kind == "embeds" else self.folder(named.name)

    def save(self, name: Any, given: Mapping[str, Any], title: Any = "") -> dict[str, Any]:
        """Saves the references of a unit object as embeds; returns their header. Raises IPAdapterError."""
        self.saved.check(name)
        if not isinstance(title, str) or len(title) > 1000:
            raise UnitError("title", title, "a text of at most 1000 characters")
        embeds = self._encode(name, given, title)
        self.saved.save(embeds)
        return embeds.report()
