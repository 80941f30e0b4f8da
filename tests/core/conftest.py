"""Fixtures that several files of this folder share."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from lib_ipadapter.encoders import ENCODERS
from tests.tiny_tower import TINY, tiny_weights


@pytest.fixture
def tiny_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, TINY.name, TINY)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_weights(), path)
    return path
