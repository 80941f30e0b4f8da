"""All runs of a folder, by name; one runs at a time, of all the shelves of a program."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..atomic import remove
from ..errors import TrainingError, UnitError
from ..unit.names import checked_name, in_text
from . import process
from .folder import CONFIG, LOG, PROCESS, STOP, RunFolder
from .launch import ROOT, Launch

R = TypeVar("R", bound=RunFolder)
_STARTING = threading.Lock()


class Shelf(Generic[R]):
    """Runs by name, each a folder of ``root``. A name is one of a run, never a path. kind: what a run is called;
    beside: the shelves whose runs must have ended before one starts here."""

    kind = "run"

    def __init__(self, root: Path, make: Callable[[Path], R]) -> None:
        self.root, self._make = root, make
        self.beside: Callable[[], Sequence[Shelf[Any]]] = tuple
        self._known: dict[str, R] = {}

    def names(self) -> list[str]:
        """The run that was started last comes first."""
        try:
            found = [path for path in self.root.iterdir() if _is_run(path)]
        except OSError:
            return []
        by_time = {path.name: _time(path / PROCESS) for path in found}
        return sorted(in_text(by_time), key=lambda name: -by_time[name])

    def run(self, name: Any) -> R:
        """Raises UnitError for a name of no run."""
        checked_name("name", name)
        if not _is_run(self.root / name):
            known = ", ".join(self.names()[:20]) or "none was started yet"
            raise UnitError("name", name, f"one of the {self.kind}s: {known}")
        return self._of(name)

    def _of(self, name: str) -> R:
        if name not in self._known:
            self._known.setdefault(name, self._make(self.root / name))
        return self._known[name]

    def active(self) -> R | None:
        """The one whose process runs."""
        return next((run for run in map(self._of, self.names()) if run.alive), None)

    def _spawn(
        self, name: str, fields: Mapping[str, Any], launch: Launch, arguments: Callable[[R], Sequence[str]],
        check: Callable[[R], None] = lambda run: None,
    ) -> R:  # fmt: skip
        """Starts the command of ``arguments`` in the run's folder. check: raises where the run may not start. Raises
        TrainingError, FileError."""
        process.require()
        with _STARTING:
            for shelf in (self, *self.beside()):
                if (other := shelf.active()) is not None:
                    raise TrainingError(f"the {shelf.kind} {other.name} is running; wait for its end, or stop it first")
            run = self._of(name)
            check(run)
            run.write(fields)
            remove(run.root / STOP)
            launch.before()
            begun = time.time()
            made = process.spawn(launch.command(*arguments(run)), ROOT, launch.env(), run.root / LOG)
            try:
                run.started(made, begun)
            except BaseException:
                made.terminate()  # it could not be found again
                raise
        return run


def _is_run(folder: Path) -> bool:
    """One whose config somebody deleted is still found while its process is noted: it may run."""
    return os.path.isfile(folder / CONFIG) or os.path.isfile(folder / PROCESS)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
