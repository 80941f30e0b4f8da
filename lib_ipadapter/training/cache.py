"""Latents and features on disk: a training that repeats its pictures encodes each once.

CACHE/<hash>/about.json    what it was made from
CACHE/<hash>/NAME.npy      [N, ...], one row a picture
CACHE/<hash>/done.npy      [N]: 0 not yet, 1 there, 2 the picture is broken
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock  # of torch's own requirements
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FileError
from .source import BrokenPicture

MISSING, DONE, BROKEN = 0, 1, 2
_STORED = {"bfloat16": "int16"}  # numpy has none: its bits


class Cache:
    """Rows of tensors for N pictures, for any process. ``about`` is what they were made from: a different one
    is a different cache. ``shapes``: shape and dtype (torch's name) of each tensor's row."""

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, str],
        count: int,
        shapes: Mapping[str, tuple[tuple[int, ...], str]],
    ) -> None:
        text = json.dumps({"about": dict(about), "count": count, "shapes": dict(shapes)}, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._text, self._count, self._shapes = text, count, dict(shapes)
        self._open: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def create(self) -> None:
        """Creates the files if they do not exist; called by one process of a training. Another training that begins
        at the same time waits and uses the same files. Raises FileError on a full disk."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_suffix(".lock")):
                if not (self.folder / "about.json").is_file():
                    self._create()
        except OSError as error:
            raise FileError(
                self.folder, f"cannot be written: {error.strerror or error}; give another cache_dir"
            ) from None

    def _create(self) -> None:
        rows = {name: (shape, _STORED.get(kind, kind)) for name, (shape, kind) in self._shapes.items()}
        rows["done"] = ((), "uint8")
        size = sum(self._count * int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in rows.values())
        self.folder.mkdir(exist_ok=True)
        for name in rows:
            self._path(name).unlink(missing_ok=True)  # left by an interrupted start
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise FileError(
                self.folder, f"the cache takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make room, "
                "give another cache_dir, or set cache to false",
            )  # fmt: skip
        for name, (shape, kind) in rows.items():
            np.lib.format.open_memmap(self._path(name), "w+", kind, (self._count, *shape)).flush()
            _reserve(self._path(name))
        part = self.folder / ".about.json.part"
        part.write_text(self._text, encoding="utf-8")
        part.replace(self.folder / "about.json")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _rows(self, name: str) -> NDArray[Any]:
        if name not in self._open:
            try:
                np.load(self._path(name), mmap_mode="r")  # of one that is cut off r+ would make zeros of what is lost
                self._open[name] = np.load(self._path(name), mmap_mode="r+")
                if self._open[name].shape[:1] != (self._count,):
                    raise ValueError(f"it has {self._open[name].shape} numbers for {self._count} rows")
            except (OSError, ValueError, EOFError) as error:
                self._open.pop(name, None)
                raise FileError(
                    self._path(name), f"cannot be read ({error}); delete {self.folder} and it is made again"
                ) from None
        return self._open[name]

    def missing(self) -> list[int]:
        """Pictures that are not in it yet."""
        return np.flatnonzero(np.asarray(self._rows("done")) == MISSING).tolist()

    def put(self, indices: Sequence[int], rows: Mapping[str, Tensor]) -> None:
        """Rows [len(indices), ...]. Marked as done after the data, so that a crash leaves no half row."""
        for name, (_, kind) in self._shapes.items():
            stored, given = self._rows(name), self._bits(name, rows[name], kind).numpy()
            if given.ndim == 2:  # a row may be shorter than its place
                stored[indices, : given.shape[1]] = given
            else:
                stored[indices] = given
            stored.flush()  # type: ignore[attr-defined]
        self._mark(indices, DONE)

    def _bits(self, name: str, rows: Tensor, kind: str) -> Tensor:
        """As numpy can store them. Raises FileError for what half precision does not hold."""
        if kind == "bfloat16":
            return rows.cpu().bfloat16().view(torch.int16)
        if kind == "float16" and not (stored := rows.cpu().half()).isfinite().all():
            raise FileError(
                self.folder, f"{name} go up to {float(rows.abs().max()):.3g}, and half precision to 65504; set "
                "cache_half to false",
            )  # fmt: skip
        return stored if kind == "float16" else rows.cpu()

    def put_broken(self, index: int) -> None:
        """The picture cannot be read."""
        self._mark([index], BROKEN)

    def _mark(self, indices: Sequence[int], state: int) -> None:
        done = self._rows("done")
        done[indices] = state
        done.flush()  # type: ignore[attr-defined]

    def get(self, index: int, key: str) -> dict[str, Tensor]:
        """A picture's rows, float32. Raises BrokenPicture, and FileError when they are not there yet."""
        state = self._rows("done")[index]
        if state == BROKEN:
            raise BrokenPicture(key, "could not be read when the cache was made")
        if state == MISSING:
            raise FileError(self.folder, f"{key} is not in the cache yet; fill it first")
        return {name: self._row(name, index, kind) for name, (_, kind) in self._shapes.items()}

    def _row(self, name: str, index: int, kind: str) -> Tensor:
        row = torch.from_numpy(np.array(self._rows(name)[index]))
        return (row.view(torch.bfloat16) if kind == "bfloat16" else row).float()


def _reserve(path: Path) -> None:
    """Allocates the file on the disk now, where the system can: a disk that fills up under a sparse mapped file
    kills the process without an exception."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
