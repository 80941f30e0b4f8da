"""All runs of a folder: started one at a time, by the command line that everybody has."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, TrainingError, UnitError
from ...unit.names import checked_name, in_text
from ..config import TrainConfig
from ..run_folder import STOP
from . import process
from .folder import CONFIG, LOG, PROCESS, Run
from .yaml_text import fields_of

_ROOT = Path(__file__).resolve().parents[3]  # where the package is
_PATHS = (
    "base", "base_config", "data", "encoder", "face_models", "init", "init_layers", "cache_dir", "sample_references",
    "validation",
)  # fmt: skip
_FILES = ("base", "base_config", "encoder", "init", "init_layers")  # of which each must be there


@dataclass(frozen=True)
class Launch:
    """How a training's process is started: the Python, folders of packages that it finds beside its own, and
    variables of its environment."""

    python: str = sys.executable
    packages: Sequence[Path] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def command(self, config: Path) -> list[str]:
        """As people would type it."""
        return [self.python, "-m", "lib_ipadapter", "train", str(config)]

    def env(self) -> dict[str, str]:
        """This process's, and what makes the log readable."""
        found = [str(_ROOT), *map(str, self.packages), os.environ.get("PYTHONPATH", "")]
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, found)), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1",
            "TQDM_MININTERVAL": "2",
        }  # fmt: skip
        return {**os.environ, **own, **dict(self.variables)}


class Runs:
    """Runs by name, each a folder of ``root``; ``shelf`` is the folder of adapters. A name is one of a run, never a
    path."""

    def __init__(self, root: Path, shelf: Path) -> None:
        self.root, self.shelf = root, shelf
        self._lock = threading.Lock()
        self._known: dict[str, Run] = {}

    def names(self) -> list[str]:
        """The run that was started last comes first."""
        try:
            found = [path for path in self.root.iterdir() if (path / CONFIG).is_file()]
        except OSError:
            return []
        by_time = {path.name: _time(path / PROCESS) for path in found}
        return sorted(in_text(by_time), key=lambda name: -by_time[name])

    def run(self, name: Any) -> Run:
        """Raises UnitError for a name of no run."""
        checked_name("name", name)
        if not (self.root / name / CONFIG).is_file():
            known = ", ".join(self.names()[:20]) or "none was started yet"
            raise UnitError("name", name, f"the name of a training: {known}")
        return self._of(name)

    def _of(self, name: str) -> Run:
        return self._known.setdefault(name, Run(self.root / name, self.shelf))

    def active(self) -> Run | None:
        """The one whose process runs."""
        return next((run for run in map(self._of, self.names()) if run.alive), None)

    def start(self, name: Any, config: Any, launch: Launch) -> Run:
        """Starts a training, or goes on with the one of this name. config: its fields, as a mapping or as YAML text;
        ``out`` is the run's folder. Raises UnitError, ConfigError, TrainingError, FileError."""
        checked_name("name", name)
        given = dict(config) if isinstance(config, Mapping) else fields_of(config)
        fields = self.checked(name, given)
        process.require()
        with self._lock:
            other = self.active()
            if other is not None:
                raise TrainingError(f"the training {other.name} is running; wait for its end, or stop it first")
            run = self._of(name)
            if not run.owns:
                raise UnitError("name", name, "another name: an adapter of this name is in the list of models")
            run.write(fields)
            (run.root / STOP).unlink(missing_ok=True)
            begun = time.time()
            made = process.spawn(launch.command(run.root / CONFIG), _ROOT, launch.env(), run.root / LOG)
            try:
                run.started(made, begun)
            except BaseException:
                made.terminate()  # it could not be found again
                raise
        return run

    def checked(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields as they will run: paths from this process's folder on, those of files there, ``out`` set. Raises
        ConfigError."""
        out = str(self.root / name)
        if given.get("out") not in (None, "", out):
            raise ConfigError("out", given["out"], f"nothing: the run's folder is {out}")
        fields = {
            key: os.path.abspath(os.path.expanduser(value)) if key in _PATHS and isinstance(value, str) and value
            else value
            for key, value in given.items()
        }  # fmt: skip
        fields["out"] = out
        TrainConfig.parse(fields)
        for key in _FILES:
            if fields.get(key) and not os.path.exists(fields[key]):
                raise ConfigError(key, fields[key], "a file that is there")
        return fields

    def publish(self) -> bool:
        """Puts the adapters of all runs that are over into the list of models; whether any was not there yet."""
        made = [self._of(name).publish() for name in self.names()]
        return any(made)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
