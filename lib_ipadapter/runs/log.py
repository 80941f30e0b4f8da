"""What a process said last: no exit code is left of it when whoever started it has ended too."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_TAIL = 2**16  # bytes of a log that are read
_ROOM = 16 * 2**20  # bytes; with less a disk is full
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|NotFound|Exit)\b.*", re.ASCII)
_SAID = re.compile(r"(?:^|\])error: (.*)")  # by the command line, perhaps behind a progress bar


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


def said(lines: list[str]) -> str:
    """The error that the command line ended with, "" for none."""
    found = (_SAID.search(line) for line in reversed(lines[-4:]))
    return next((match[1] for match in found if match), "")


def thrown(lines: list[str], smaller: str) -> str:
    """The error behind a traceback, in one line, "" for none. smaller: what to do where memory ran out."""
    if not any("Traceback (most recent call last)" in line for line in lines):
        return ""
    last = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
    if "out of memory" in last.lower() or last.startswith("MemoryError"):
        return f"memory ran out ({last[:300]}). {smaller}"
    return last[:1000]


def killed(log: Path, done: str, resumes: str, smaller: str) -> str:
    """Of a process that ended without a word. done: how far it was; resumes: what starting it again does; smaller: what
    to do where memory runs out again."""
    try:
        free = shutil.disk_usage(log.parent).free
    except OSError:
        free = _ROOM
    if free < _ROOM:
        return (
            f"the disk is full ({free / 1e6:.0f} MB are free), and the process ended at {done}. Make room, and start "
            f"it again: {resumes}"
        )
    return (
        f"the process ended at {done} without a word: it was killed, by somebody or because memory ran out. Start it "
        f"again: {resumes}. If it happens again: {smaller[0].lower()}{smaller[1:]}"
    )
