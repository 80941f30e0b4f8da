"""Saved references on the command line: names are paths of embeds and of folders."""

from __future__ import annotations

from pathlib import Path

from ..prompts.embeds import Embeds, read
from ..prompts.references import PictureFolders


class PathStore:
    """``ReferenceStore`` whose names are paths, as the user of the command line gives them."""

    def embeds(self, name: str) -> Embeds:
        """Raises FileError."""
        return read(Path(name))

    def folder(self, name: str) -> list[Path]:
        """Raises UnitError."""
        path = Path(name).absolute()
        return PictureFolders(path.parent).pictures(path.name)
