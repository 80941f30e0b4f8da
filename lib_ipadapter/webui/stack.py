"""The call stack: the WebUI does not tell a Script who started a job, and after an exception no callback comes that
would end a record of the jobs under way. Functions are known by their module and name, never by what their locals look
like."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

# What hands a function its own locals; emptying them would change them under it.
_READS_LOCALS = {"locals", "vars", "dir", "eval", "exec"}


def callers() -> Iterator[FrameType]:
    """Innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def module_of(frame: FrameType) -> str:
    """The name of the module whose code the frame runs."""
    return str(frame.f_globals.get("__name__", ""))


def is_in(frame: FrameType, module: str, *names: str) -> bool:
    """Whether a frame runs one of these functions of ``module``."""
    return frame.f_code.co_name in names and module_of(frame) == module


def variables(frame: FrameType) -> dict[str, Any]:
    """A function's local variables now. The frame keeps none of them alive because of it: before Python 3.13 it would
    hold all that they were at the last look, until it ends."""
    seen = frame.f_locals
    found = dict(seen)
    code = frame.f_code
    if isinstance(seen, dict) and code.co_flags & inspect.CO_OPTIMIZED and not _READS_LOCALS & {*code.co_names}:
        seen.clear()
    return found


def variable(frame: FrameType, name: str) -> Any:
    """One local variable; None where there is none of that name."""
    return variables(frame).get(name)


def jobs(frames: Sequence[FrameType]) -> list[Any]:
    """The jobs that are processed, innermost first."""
    found: list[Any] = []
    for frame in frames:
        if is_in(frame, "modules.processing", "process_images", "process_images_inner"):
            p = variable(frame, "p")
            if p is not None and (not found or found[-1] is not p):
                found.append(p)
    return found
