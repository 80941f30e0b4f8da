"""The folder of one evaluation. What the command writes into it, its ``--out``, stands in docs/evaluation.md; what
everything that is started has, in runs/folder.py."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...runs import log as words
from ...runs.folder import LOG, SHOWN, STOP, RunFolder
from ...runs.state import Ended
from .report import Report, read_report
from .state import EvaluationState

RESULTS, GRID = "results.json", "grid.png"
SMALLER = "Set a smaller batch, or unload the WebUI's model first"
_RESUMES = "pictures that are drawn are kept"
_LAST = "pictures, results.json"  # how the command's last line begins
# A bar of tqdm, as evaluation/run.py has them: "pictures:  50%|##   | 2/4 [00:05<00:05,  2.6s/picture]"
_BAR = re.compile(r"^(references|pictures|measuring): .*\| (\d+)/(\d+) \[[\d:]+<((?:\d+:)*\d+|\?)")
_PHASES: dict[str, Literal["preparing", "drawing", "measuring"]] = {
    "references": "preparing", "pictures": "drawing", "measuring": "measuring",
}  # fmt: skip


class Bar(NamedTuple):
    """How far a phase is; left: seconds, None where they are not known."""

    phase: Literal["preparing", "drawing", "measuring"]
    done: int
    total: int
    left: float | None


class Evaluation(RunFolder):
    """One evaluation."""

    def stop(self) -> None:
        """Ends it: each picture is written whole, and kept. Raises nothing."""
        noted = self.process()
        if noted is None or not noted[0].alive():
            return
        with contextlib.suppress(OSError):  # on a full disk the signal is left
            (self.root / STOP).touch()
        noted[0].terminate()

    def state(self) -> EvaluationState:
        """What it is doing. Never raises."""
        lines = words.tail(self.root / LOG)
        bar = progress(lines)
        done, total = (bar.done, bar.total) if bar and bar.phase != "preparing" else (0, 0)
        common: dict[str, Any] = {"name": self.name, "done": done, "total": total, "log": tuple(lines[-SHOWN:])}
        if not self.alive:
            ended, why = self._ended(lines, f"picture {done} of {total}" if total else "its start")
            return EvaluationState(phase=ended, message=why, **common)
        phase = "stopping" if self.asked else bar.phase if bar else "preparing"
        message = lines[-1] if lines and bar is None else ""
        return EvaluationState(phase=phase, message=message, seconds_left=bar.left if bar else None, **common)

    def _ended(self, lines: list[str], at: str) -> tuple[Ended, str]:
        """(phase, message) of one whose process runs no more."""
        # Behind its last line packages may say something as they end.
        if any(line.startswith(_LAST) for line in lines[-4:]) and (self.root / RESULTS).is_file():
            return "done", ""
        if wrong := words.said(lines) or words.thrown(lines, SMALLER):
            return "failed", wrong
        if self.asked:
            return "stopped", f"stopped at {at}; start it again to go on: {_RESUMES}"
        return "killed", words.killed(self.root / LOG, at, _RESUMES, SMALLER)

    def report(self) -> Report | None:
        """What it found, once it is done."""
        return read_report(self.root / RESULTS) if self.state().phase == "done" else None

    @property
    def grid(self) -> Path:
        """The picture with references in its first column."""
        return self.root / GRID


def progress(lines: list[str]) -> Bar | None:
    """The last bar in a log."""
    for line in reversed(lines):
        if found := _BAR.match(line):
            left = None if found[4] == "?" else _seconds(found[4])
            return Bar(_PHASES[found[1]], int(found[2]), int(found[3]), left)
    return None


def _seconds(clock: str) -> float:
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return float(total)
