"""Weight files of encoders: shapes without reading tensors, tensors one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import EncoderMissing
from ..files.tensors import SUFFIXES, open_tensors
from .layout import Read, Shape

__all__ = ["SUFFIXES", "opened"]


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Shape], Read]]:
    """(shapes by key, reader of one tensor) of a weight file; tensors stay on the disk until read.

    Raises EncoderMissing (no such file), UnsafeFile (not readable as tensors, or it carries code), FileError.
    """
    if not os.path.isfile(path):
        raise EncoderMissing(f"{path.name}: no such file in {path.parent}; choose another encoder file")
    file = open_tensors(path)
    yield file.shapes, file.read
