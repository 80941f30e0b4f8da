"""The folder of one training. What the trainer writes into it stands in training/run_folder.py, what everything that is
started has, in runs/folder.py.

RUN/published.json  the version of the adapter that is in the list of models: as it was made, and as it lies there
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ...atomic import replacing
from ...errors import IPAdapterError
from ...runs.folder import LOG, SHOWN, STOP, RunFolder, read_json
from ...runs.log import tail
from ..config import TrainConfig
from ..run_folder import ADAPTER
from .ending import ending
from .progress import Progress
from .state import RunState

PUBLISHED = "published.json"


class Run(RunFolder):
    """One training, named as its adapter. shelf: the folder of adapters, where the finished one goes."""

    def __init__(self, root: Path, shelf: Path) -> None:
        super().__init__(root)
        self.shelf = shelf
        self.progress = Progress(root / "log.jsonl")

    @property
    def published(self) -> Path:
        """Where its adapter is for the list of models."""
        return self.shelf / f"{self.name}.safetensors"

    @property
    def owns(self) -> bool:
        """Whether the adapter of its name in the list is its own, as it was put there, or none is there."""
        try:
            return read_json(self.root / PUBLISHED).get("there") == _version(self.published)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def stop(self) -> None:
        """Asks the training to save and to end after the step that it is at; one that has not begun its steps yet, and
        one that was asked before, by SIGTERM, which ends it at once. Raises FileError."""
        noted = self.process()
        if noted is None or not noted[0].alive():
            return
        asked = self.asked
        with contextlib.suppress(OSError):  # on a full disk the signal is left
            (self.root / STOP).touch()
        if asked or not self.progress.update().since(noted[1]):
            noted[0].terminate()

    def state(self) -> RunState:
        """What it is doing. Never raises."""
        noted, progress = self.process(), self.progress.update()
        begun = noted[1] if noted else 0.0
        alive = noted is not None and noted[0].alive()
        steps, trouble = self._steps()
        log, asked = tail(self.root / LOG), self.asked
        common: dict[str, Any] = {
            "name": self.name, "step": progress.step, "steps": steps, "loss": progress.loss,
            "validation": progress.measured[-1][1] if progress.measured else None, "samples": self.samples(),
            "adapter": self.name if self.published.is_file() and self.owns else "",
            "log": tuple(log[-SHOWN:]),
        }  # fmt: skip
        if not alive:
            ended = ending(self.root / LOG, progress.step, steps, asked)
            return RunState(phase=ended.how, message=trouble or ended.message, **common)
        if not progress.since(begun):
            return RunState(phase="stopping" if asked else "preparing", message=log[-1] if log else "", **common)
        each = progress.seconds_a_step(begun)
        left = None if each is None else each * max(steps - progress.step, 0)
        return RunState(
            phase="stopping" if asked else "training", speed=progress.speed, seconds_left=left, **common
        )  # fmt: skip

    def _steps(self) -> tuple[int, str]:
        """Of the training, and what is wrong with its config, "" if nothing is."""
        try:
            return TrainConfig.parse(self.fields()).steps, ""
        except IPAdapterError as error:
            return 0, str(error)

    def samples(self) -> tuple[str, ...]:
        """Names of the grids, the newest last."""
        with contextlib.suppress(OSError):
            return tuple(sorted(path.name for path in (self.root / "samples").glob("step-*.png")))
        return ()

    def publish(self) -> bool:
        """Puts the adapter of a run that is over into the list of models; whether it was not there yet. One that people
        deleted stays away. Never raises."""
        made = self.root / ADAPTER
        try:
            version = _version(made)
            noted = read_json(self.root / PUBLISHED).get("made")
            if not self.owns or noted == version or self.alive or not self._ended_well():
                return False
            with replacing(self.published) as part:
                _copied(made, part)
            with replacing(self.root / PUBLISHED) as part:
                told = {"made": version, "there": _version(self.published)}
                part.write_text(json.dumps(told), encoding="utf-8")
        except (OSError, IPAdapterError):
            return False
        return True

    def _ended_well(self) -> bool:
        return self.state().phase in ("done", "stopped")


def _version(path: Path) -> dict[str, int]:
    """What tells a file from another at its place. Raises OSError."""
    stat = path.stat()
    return {"size": stat.st_size, "time": stat.st_mtime_ns}


def _copied(source: Path, target: Path) -> None:
    """Without taking room where the system can: the trainer never writes into a file that it has put there."""
    if sys.platform != "win32":  # which replaces no file that is open under another name
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
