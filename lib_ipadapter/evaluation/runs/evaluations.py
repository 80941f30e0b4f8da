"""All evaluations: started one at a time, by the command line that everybody has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...encoders import absolute_weight_file
from ...errors import ConfigError
from ...options import Option, as_flags, fields_of, parse
from ...runs.launch import Launch
from ...runs.shelf import Shelf
from ...runs.yaml_text import fields_of as yaml_fields
from ...unit.names import checked_name
from ..options import EvaluateOptions
from .evaluation import Evaluation

_FILES = ("clip", "checkpoint", "config", "coco", "payload", "encoder", "face_models")  # of which each must be there


class Evaluations(Shelf[Evaluation]):
    """Evaluations by name."""

    kind = "evaluation"

    def __init__(self, root: Path) -> None:
        super().__init__(root, Evaluation)

    def start(self, name: Any, config: Any, launch: Launch) -> Evaluation:
        """Starts an evaluation, or goes on with the one of this name. config: the flags of ``evaluate`` by name, as a
        mapping or as YAML text; ``out`` is the run's folder. Raises UnitError, ConfigError, TrainingError,
        FileError."""
        checked_name("name", name)
        given = dict(config) if isinstance(config, Mapping) else yaml_fields(config)
        fields = self.checked(name, given)
        return self._spawn(name, fields, launch, lambda run: ["evaluate", *as_flags(EvaluateOptions, fields)])

    def checked(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields as they will run: paths from this process's folder on, those of files there, ``out`` set. Raises
        ConfigError."""
        out = str(self.root / name)
        if given.get("out") not in (None, "", out):
            raise ConfigError("out", given["out"], f"nothing: the run's folder is {out}")
        options = {option.name: option for option in fields_of(EvaluateOptions)}
        fields = {
            key: _from_here(options[key], _listed(options[key], value)) if key in options else value
            for key, value in given.items()
            if value is not None
        }
        fields["out"] = out
        parse(EvaluateOptions, fields).check()
        for key in _FILES:
            for path in _each(fields.get(key)):
                if not os.path.exists(path):
                    raise ConfigError(key, path, "a file that is there")
        return fields


def _listed(option: Option, value: Any) -> Any:
    """A field of several values may be given as one, or as it is typed on the command line."""
    if option.many == "," and isinstance(value, (int, float)):
        return [value]
    if option.many == "," and isinstance(value, str):
        return option.read(value)
    return [value] if option.many and isinstance(value, str) else value


def _from_here(option: Option, value: Any) -> Any:
    if option.kind != "path":
        return value
    if isinstance(value, list):
        return [_absolute(option.name, one) for one in value]
    return _absolute(option.name, value)


def _absolute(name: str, path: Any) -> Any:
    if not isinstance(path, str) or not path.strip():
        return path
    if name == "encoder":
        return absolute_weight_file(path.strip())
    return os.path.abspath(os.path.expanduser(path.strip()))


def _each(value: Any) -> list[str]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
