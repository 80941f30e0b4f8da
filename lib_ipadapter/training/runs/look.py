"""A first look at a training's data: what it will find there, before it starts."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, printable
from ..buckets import Size, bucket_sizes, nearest
from ..source import BrokenPicture, FolderSource, Source
from ..sources import open_source

SECONDS = 20.0
_MOST_FILES = 500_000
_NAMED = 10  # pictures that are named


@dataclass(frozen=True)
class Look:
    """pictures: in all; measured: of them whose size was read, and opened: decoded, before the time was up. The rest
    is of those: captions_missing; references: pictures with one of their own; broken: (picture, why) of the first few
    of ``broken_count``; smallest, largest: (width, height) by area; small: pictures that will be enlarged; buckets:
    ((width, height), pictures), the most common first."""

    pictures: int
    measured: int
    opened: int
    captions_missing: int
    references: int
    broken_count: int
    broken: tuple[tuple[str, str], ...]
    smallest: Size | None
    largest: Size | None
    small: int
    buckets: tuple[tuple[Size, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """As the API answers."""
        return asdict(self)


def look(data: Path | str, resolution: int = 512, step: int = 64, seconds: float = SECONDS,
         clock: Callable[[], float] = time.monotonic) -> Look:  # fmt: skip
    """Looks at the data as a training at ``resolution`` with buckets of ``step`` opens it, for so many seconds at most.
    First all sizes and captions, by the heads of the files, then the pictures themselves. Raises DataError."""
    end = clock() + seconds
    if not str(data).strip():
        raise DataError("data", "no folder is named; give a folder of pictures with captions, or .tar shards")
    path = Path(os.path.abspath(os.path.expanduser(str(data).strip())))
    check_count(path, end, clock)
    source = open_source(path)
    broken: dict[str, str] = {}
    sizes: list[Size] = []
    uncaptioned = measured = opened = 0
    for index in range(len(source)):
        if clock() > end:
            break
        measured += 1
        try:
            sizes.append(source.size(index))
            uncaptioned += not source.caption(index)
        except BrokenPicture as error:
            broken[error.key] = error.reason
    for index in range(measured):
        if clock() > end:
            break
        opened += 1
        if source.key(index) not in broken:
            try:
                source.load(index)
            except BrokenPicture as error:
                broken[error.key] = error.reason
    buckets = bucket_sizes(resolution, step) or [(resolution, resolution)]
    near = [nearest(size, buckets) for size in sizes]
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return Look(
        len(source), measured, opened, uncaptioned, _references(source), len(broken), tuple(broken.items())[:_NAMED],
        by_area[0] if by_area else None, by_area[-1] if by_area else None,
        sum(size[0] < b[0] or size[1] < b[1] for size, b in zip(sizes, near, strict=True)),
        tuple(Counter(near).most_common()),
    )  # fmt: skip


def _references(source: Source) -> int:
    entries = source.entries if isinstance(source, FolderSource) else []
    return sum(entry.reference != entry.picture for entry in entries)


def check_count(path: Path, end: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Raises DataError for a folder with so much in it that it is hardly one of pictures alone, as "/" is; also where
    ``end`` comes before all is counted."""
    count = 0
    if "\0" in str(path) or printable(str(path)) != str(path):
        raise DataError(path, "no folder has such a name; give a folder of pictures with captions, or .tar shards")
    for _, _, names in os.walk(path):
        count += len(names)
        if count > _MOST_FILES or clock() > end:
            raise DataError(path, f"there are {count} files or more below it; give the folder of the pictures alone")
