"""How a process is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # where the package is


@dataclass(frozen=True)
class Launch:
    """The Python, folders of packages that it finds beside its own, variables of its environment, and what is done
    before it starts, once all is checked."""

    python: str = sys.executable
    packages: Sequence[Path] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None

    def command(self, *arguments: str) -> list[str]:
        """As people would type it; the first argument is the command's name."""
        return [self.python, "-m", "lib_ipadapter", *arguments]

    def env(self) -> dict[str, str]:
        """This process's, and what makes the log readable."""
        found = [str(ROOT), *map(str, self.packages), os.environ.get("PYTHONPATH", "")]
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, found)), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1",
            "TQDM_MININTERVAL": "2",
        }  # fmt: skip
        return {**os.environ, **own, **dict(self.variables)}
