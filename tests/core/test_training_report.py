"""What a training reports to Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.errors import TrainingError
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.report import Reporter
from lib_ipadapter.training.run_folder import RunFolder


def reporter(out: Path, main: bool = True, **fields: Any) -> Reporter:
    config = TrainConfig.parse(
        {"base": "b", "data": "d", "encoder": "e", "out": str(out), "tensorboard": False, "wandb": "mine", **fields}
    )
    return Reporter(config, RunFolder(out, config), main, lambda step: 4, 0)


def test_it_gets_the_numbers_of_the_log_and_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, Any]]] = []
    ended: list[int] = []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: ended.append(1))

    def init(**fields: Any) -> Any:
        begun.append(fields)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda path: f"picture {path}"))
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    for _ in range(2):
        with reporter(tmp_path) as report:
            report.step(1, 0.5, 1e-4, 0)
            report.step(2, 0.25, 1e-4, 0, validation=0.75)
            report.picture(2, tmp_path / "grid.png")
    assert begun[0]["project"] == "mine"
    assert begun[0]["id"] == begun[1]["id"], "a resumed training goes on in the same run"
    assert begun[0]["resume"] == "allow"
    assert begun[0]["config"]["lr"] == 1e-4
    assert [step for step, _ in logged[:3]] == [1, 2, 2]
    assert logged[0][1].keys() == {"loss", "lr", "pictures_per_second"}
    assert logged[1][1]["validation"] == 0.75
    assert logged[2][1] == {"samples": f"picture {tmp_path / 'grid.png'}"}
    assert ended == [1, 1]
    with reporter(tmp_path, main=False) as report:
        report.step(1, 0.5, 1e-4, 0)
    assert len(begun) == 2, "only the main process reports"


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match="pip install wandb"), reporter(tmp_path):
        pass
