"""Optimizers by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_ipadapter.errors import TrainingError
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.optimizers import PACKAGES, in_use, learning, make_optimizer


def config(**fields: Any) -> TrainConfig:
    return TrainConfig.parse({"base": "b", "data": "d", "encoder": "e", "out": "o", **fields})


LR = {"prodigy": 1.0}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_missing_is_named_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch):
    module, _, package = PACKAGES[name]
    for part in (module, module.partition(".")[0]):
        monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(TrainingError, match=f"optimizer {name}: .*pip install {package}, or choose optimizer adamw"):
        make_optimizer(config(optimizer=name, lr=LR.get(name, 1e-4)), [nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_given_what_the_config_says(name: str, monkeypatch: pytest.MonkeyPatch):
    module, kind, _ = PACKAGES[name]
    asked: dict[str, Any] = {}

    def made(parameters: Any, **fields: Any) -> str:
        asked.update(fields, count=len(list(parameters)))
        return "made"

    monkeypatch.setitem(sys.modules, module.partition(".")[0], SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{kind: made}))
    own = config(optimizer=name, lr=LR.get(name, 2e-4), weight_decay=0.3)
    assert make_optimizer(own, [nn.Parameter(torch.ones(2))]) == "made"
    assert (asked["count"], asked["lr"], asked["weight_decay"]) == (1, own.lr, 0.3)


@pytest.mark.parametrize("name", ["adamw", *PACKAGES])
def test_it_descends(name: str):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name][0], reason=f"{PACKAGES[name][2]} is not installed")
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.full((64,), 3.0))
    optimizer = make_optimizer(config(optimizer=name, lr=LR.get(name, 0.1), weight_decay=0.0), [parameter])
    learning(optimizer)
    for _ in range(150):
        optimizer.zero_grad()
        (parameter - 1).square().mean().backward()
        optimizer.step()
    with in_use(optimizer, [parameter]):
        assert (parameter - 1).abs().max() < 0.5


def test_looking_at_the_average_changes_nothing():
    pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    torch.manual_seed(0)

    def run(look: bool) -> torch.Tensor:
        parameter = nn.Parameter(torch.linspace(-2, 2, 33))
        optimizer = make_optimizer(config(optimizer="schedule-free", lr=0.05), [parameter])
        learning(optimizer)
        for step in range(20):
            optimizer.zero_grad()
            (parameter.sin() * torch.arange(33.0)).sum().backward()
            optimizer.step()
            if look:
                before = parameter.detach().clone()
                with in_use(SimpleNamespace(optimizer=optimizer), [parameter]):
                    assert step < 2 or not torch.equal(before, parameter)
                assert torch.equal(before, parameter)
        return parameter.detach()

    assert torch.equal(run(True), run(False))
