"""All trainings: started one at a time, by the command line that everybody has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...encoders import absolute_weight_file
from ...errors import ConfigError, UnitError
from ...runs.folder import CONFIG
from ...runs.launch import Launch
from ...runs.shelf import Shelf
from ...runs.yaml_text import fields_of
from ...unit.names import checked_name
from ..config import TrainConfig
from ..sources import PATTERN
from .folder import Run

_PATHS = (
    "base", "base_config", "data", "encoder", "face_models", "init", "init_layers", "cache_dir", "sample_references",
    "validation",
)  # fmt: skip
_FILES = ("base", "base_config", "encoder", "init", "init_layers")  # of which each must be there
_PICTURES = ("data", "validation", "sample_references")  # and of these, where they are no pattern


class Runs(Shelf[Run]):
    """Trainings by name; ``shelf`` is the folder of adapters."""

    kind = "training"

    def __init__(self, root: Path, shelf: Path) -> None:
        super().__init__(root, lambda folder: Run(folder, shelf))
        self.shelf = shelf

    def start(self, name: Any, config: Any, launch: Launch) -> Run:
        """Starts a training, or goes on with the one of this name. config: its fields, as a mapping or as YAML text;
        ``out`` is the run's folder. Raises UnitError, ConfigError, TrainingError, FileError."""
        checked_name("name", name)
        given = dict(config) if isinstance(config, Mapping) else fields_of(config)
        return self._spawn(name, self.checked(name, given), launch, _arguments, _is_free)

    def checked(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields as they will run: paths from this process's folder on, those of files there, ``out`` set. Raises
        ConfigError."""
        out = str(self.root / name)
        if given.get("out") not in (None, "", out):
            raise ConfigError("out", given["out"], f"nothing: the run's folder is {out}")
        fields = {
            key: _from_here(key, value) if key in _PATHS and isinstance(value, str) and value else value
            for key, value in given.items()
        }  # fmt: skip
        fields["out"] = out
        TrainConfig.parse(fields)
        for key in _FILES:
            if fields.get(key) and not os.path.exists(fields[key]):
                raise ConfigError(key, fields[key], "a file that is there")
        for key in _PICTURES:
            if (path := fields.get(key)) and not PATTERN & set(path) and not os.path.exists(path):
                raise ConfigError(key, path, "a folder of pictures that is there, or .tar shards")
        return fields

    def publish(self) -> bool:
        """Puts the adapters of all runs that are over into the list of models; whether any was not there yet."""
        made = [self._of(name).publish() for name in self.names()]
        return any(made)


def _from_here(key: str, path: str) -> str:
    return absolute_weight_file(path) if key == "encoder" else os.path.abspath(os.path.expanduser(path))


def _arguments(run: Run) -> list[str]:
    return ["train", str(run.root / CONFIG)]


def _is_free(run: Run) -> None:
    if not run.owns:
        raise UnitError("name", run.name, "another name: an adapter of this name is in the list of models")
