"""How a training ended, by the last words in its log: no exit code is left when whoever started it has ended too."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

_TAIL = 2**16  # bytes of a log that are read
_ROOM = 16 * 2**20  # bytes; with less a disk is full
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|NotFound|Exit)\b.*", re.ASCII)
_SAID = re.compile(r"(?:^|\])error: (.*)")  # by the command line, perhaps behind a progress bar
SMALLER = "Choose the preset of less memory, or set a smaller batch, checkpointing: true and storage: fp8"


class Ending(NamedTuple):
    """how: the training's end; message: for people, "" where there is nothing to say."""

    how: Literal["done", "stopped", "failed", "killed"]
    message: str = ""


def tail(log: Path) -> list[str]:
    """The last lines of a log. Of a progress bar, which goes over its line again and again, the last."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            text = file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return []
    lines = (line.rstrip().rpartition("\r")[2] for line in text.split("\n"))
    return [line.rstrip() for line in lines if line.strip()]


def ending(log: Path, step: int, steps: int, stopped: bool) -> Ending:
    """Of a process that runs no more. step: done, of ``steps``; stopped: it was asked to."""
    lines = tail(log)
    for line in reversed(lines[-4:]):
        if said := _SAID.search(line):
            return Ending("failed", said[1])
        if line == "stopped" or line.startswith("stopped after step"):
            return Ending("stopped", line)
    if steps and step >= steps and any(line.endswith(".safetensors") for line in lines[-1:]):
        return Ending("done")
    if thrown := _thrown(lines):
        return Ending("failed", thrown)
    if stopped:
        return Ending("stopped", f"stopped at step {step}")
    return Ending("killed", _killed(log, step))


def _thrown(lines: list[str]) -> str:
    """The error behind a traceback, in one line."""
    if not any("Traceback (most recent call last)" in line for line in lines):
        return ""
    last = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
    if "out of memory" in last.lower() or last.startswith("MemoryError"):
        return f"memory ran out ({last[:300]}). {SMALLER}"
    return last[:1000]


def _killed(log: Path, step: int) -> str:
    try:
        free = shutil.disk_usage(log.parent).free
    except OSError:
        free = _ROOM
    if free < _ROOM:
        return (
            f"the disk is full ({free / 1e6:.0f} MB are free), and the process ended at step {step}. Make room, and "
            "start it again: it goes on from the last checkpoint"
        )
    return (
        f"the process ended at step {step} without a word: it was killed, by somebody or because memory ran out. Start "
        f"it again: it goes on from the last checkpoint. If it happens again: {SMALLER[0].lower()}{SMALLER[1:]}"
    )
