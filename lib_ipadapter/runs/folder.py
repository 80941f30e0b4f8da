"""The folder of one run, as whoever starts it writes and reads it.

RUN/run.yaml        the fields that the command runs
RUN/process.json    the process's number, when it was made, and when it was started
RUN/log.txt         what the process printed since
RUN/stop            it was asked to end
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..errors import ConfigError
from .process import Process
from .yaml_text import fields_of, text_of

CONFIG, PROCESS, LOG, STOP = "run.yaml", "process.json", "log.txt", "stop"
SHOWN = 12  # lines of the log


class RunFolder:
    """One run, known by the name of its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.root.name

    def write(self, fields: Mapping[str, Any]) -> None:
        """The fields that the command runs. Raises FileError."""
        with replacing(self.root / CONFIG) as part:
            part.write_text(text_of(fields), encoding="utf-8")

    def fields(self) -> dict[str, Any]:
        """Those that the command runs. Raises ConfigError."""
        path = self.root / CONFIG
        try:
            return fields_of(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("config", str(path), f"a file of YAML that can be read ({error})") from None

    def text(self) -> str:
        """The YAML text that the command runs, without its folder. Raises ConfigError."""
        return text_of({name: value for name, value in self.fields().items() if name != "out"})

    def started(self, process: Process, begun: float) -> None:
        """Notes the process. Raises FileError."""
        with replacing(self.root / PROCESS) as part:
            part.write_text(json.dumps({**asdict(process), "begun": begun}), encoding="utf-8")

    def process(self) -> tuple[Process, float] | None:
        """The process and when it was started, seconds since the epoch; None where none is noted."""
        found = read_json(self.root / PROCESS)
        try:
            made = Process(int(found["pid"]), float(found["made"]), str(found.get("tick", "")))
            return made, float(found["begun"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        noted = self.process()
        return noted is not None and noted[0].alive()

    @property
    def asked(self) -> bool:
        """Whether it was asked to end."""
        return (self.root / STOP).exists()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON, {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
