"""The files below a folder, listed once and again only after a change."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

NOT_SEARCHED = {"references", "embeds"}  # beside adapters: thousands of pictures, and no weights of encoders
_RACY = 2_000_000_000  # ns: a folder may change again within one tick of the file system's clock


@dataclass(frozen=True)
class Listing:
    """files: below the folders; folders: the time (ns) at which each of them was changed last; made: when (ns)."""

    files: tuple[Path, ...]
    folders: tuple[tuple[str, int], ...]
    made: int

    def is_current(self) -> bool:
        """Whether nothing was added, removed or renamed since. Costs one ``stat`` per folder."""
        return all(_changed(folder) == changed and abs(changed - self.made) > _RACY for folder, changed in self.folders)


def walk(folder: Path) -> Listing:
    """Files in a folder and below; links to folders are followed once (people link their model folders, even in
    circles). Folders named NOT_SEARCHED are left out. A folder that is a file stands for itself."""
    made = time.time_ns()
    if os.path.isfile(folder):
        return Listing((folder, *_beside(folder)), ((str(folder.parent), _changed(str(folder.parent))),), made)
    files: list[Path] = []
    folders: dict[str, int] = {str(folder): _changed(str(folder))}
    visited = set()
    for root, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            below.clear()
            continue
        visited.add(real)
        below[:] = [name for name in below if name not in NOT_SEARCHED]
        folders[root] = _changed(root)
        files += (Path(root, name) for name in names)
    return Listing(tuple(files), tuple(folders.items()), made)


def _beside(file: Path) -> tuple[Path, ...]:
    config = file.with_suffix(".json")
    return (config,) if config.is_file() else ()


def _changed(folder: str) -> int:
    """0 for a folder that is not there."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0
