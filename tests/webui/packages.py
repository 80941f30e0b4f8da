"""Which packages a Python has."""

from __future__ import annotations

import subprocess
from pathlib import Path

FIND = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if not find_spec(n)))"


def missing(program: Path, *names: str) -> list[str]:
    """Those of these packages that it has not. None is imported: what brings torch takes seconds."""
    run = subprocess.run([program, "-c", FIND, *names], capture_output=True, text=True, check=True)
    return run.stdout.split()
