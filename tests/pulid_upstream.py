"""ToTheBeginning/PuLID's own code, from a checkout at $PULID_DIR (~/PuLID), for comparison."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest


def checkout() -> Path:
    return Path(os.environ.get("PULID_DIR", "~/PuLID")).expanduser()


def module(name: str) -> Any:
    """A module of it, such as ``pulid.encoders``, without what its packages import. Skips a test where it is absent."""
    package, _, _ = name.rpartition(".")
    folder = checkout() / package
    if not folder.is_dir():
        pytest.skip(f"no PuLID at {checkout()} (git clone https://github.com/ToTheBeginning/PuLID, set PULID_DIR)")
    alias = f"upstream_{package}"
    if alias not in sys.modules:
        shell = types.ModuleType(alias)
        shell.__path__ = [str(folder)]
        sys.modules[alias] = shell
    return importlib.import_module(f"{alias}.{name.rpartition('.')[2]}")
