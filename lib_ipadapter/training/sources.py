"""Opens a training's data: a folder of captioned pictures, or WebDataset shards."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from ..files import captioned
from ..pictures.images import SUFFIXES
from .shards import ShardSource, expand
from .source import FolderSource, Source

PATTERN = set("*?[{")  # of shards


def open_source(path: Path | str) -> Source:
    """A folder, a .tar file, a folder of them, or a pattern such as ``set-{000..009}.tar``. Raises DataError."""
    text = str(path)
    if PATTERN & set(text) and not os.path.exists(text):
        return ShardSource(expand(text))
    path = Path(path)
    if path.suffix == ".tar":
        return ShardSource([path])
    if not os.path.isdir(path):
        raise DataError(path, "no such folder or .tar file; give a folder of pictures with captions, or shards")
    entries = captioned.entries(path)
    if entries:
        return FolderSource(path, entries)
    shards = sorted(p for p in path.rglob("*.tar") if p.is_file())
    if shards:
        return ShardSource(shards)
    raise DataError(path, f"no pictures in it; expected some of {', '.join(SUFFIXES)}, or .tar shards")
