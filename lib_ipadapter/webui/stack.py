"""The call stack: the WebUI does not tell a Script who started a job, and after an exception no callback comes that would
end a record of the jobs under way."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any


def callers() -> Iterator[FrameType]:
    """Innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_in(frame: FrameType, module: str, *names: str) -> bool:
    """Whether a frame runs one of these functions of ``module``."""
    return frame.f_code.co_name in names and frame.f_globals.get("__name__") == module


def jobs(frames: Sequence[FrameType]) -> list[Any]:
    """The jobs that are processed, innermost first."""
    found: list[Any] = []
    for frame in frames:
        if is_in(frame, "modules.processing", "process_images", "process_images_inner"):
            p = frame.f_locals["p"]
            found += [p] if not found or found[-1] is not p else []
    return found
