"""How a training ended, by the last words in its log."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ...runs import log as words
from ...runs.state import Ended

SMALLER = "Choose the preset of less memory, or set a smaller batch, checkpointing: true and storage: fp8"
_RESUMES = "it goes on from the last checkpoint"


class Ending(NamedTuple):
    """how: the training's end; message: for people, "" where there is nothing to say."""

    how: Ended
    message: str = ""


def ending(log: Path, step: int, steps: int, stopped: bool) -> Ending:
    """Of a process that runs no more. step: done, of ``steps``; stopped: it was asked to."""
    lines = words.tail(log)
    if said := words.said(lines):
        return Ending("failed", said)
    for line in reversed(lines[-4:]):
        if line == "stopped" or line.startswith("stopped after step"):
            return Ending("stopped", line)
    # Behind its last line packages may say something as they end.
    if steps and step >= steps and any(line.endswith(".safetensors") for line in lines[-4:]):
        return Ending("done")
    if thrown := words.thrown(lines, SMALLER):
        return Ending("failed", thrown)
    if stopped:
        return Ending("stopped", f"stopped at step {step}")
    return Ending("killed", words.killed(log, f"step {step}", _RESUMES, SMALLER))
