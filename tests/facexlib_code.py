"""Small stand-ins for facexlib's face parser, with its keys; and its own code, where it is installed."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.webui.harness import checkout

CLASSES = 19


class Inner(nn.Module):
    """A module of these children."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class SmallBiSeNet(nn.Module):
    """Tells a pixel's class by its colour: 64 steps of red to 19 classes, over and over."""

    def __init__(self, num_class: int) -> None:
        super().__init__()
        self.cp = Inner(resnet=Inner(conv1=nn.Conv2d(3, 4, 1, bias=False)))
        self.ffm = Inner(convblk=Inner(conv=nn.Conv2d(4, 4, 1, bias=False)))
        self.conv_out = Inner(conv_out=nn.Conv2d(4, num_class, 1, bias=False))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out: Tensor = self.conv_out.conv_out(self.ffm.convblk.conv(self.cp.resnet.conv1(x)))
        return out, out, out


def small(monkeypatch: pytest.MonkeyPatch) -> type[SmallBiSeNet]:
    """``facexlib.parsing.bisenet`` holds the small network."""
    package = types.ModuleType("facexlib")
    package.__spec__ = importlib.machinery.ModuleSpec("facexlib", None, is_package=True)
    package.__path__ = []
    parsing, bisenet = types.ModuleType("facexlib.parsing"), types.ModuleType("facexlib.parsing.bisenet")
    parsing.__path__ = []
    bisenet.BiSeNet = SmallBiSeNet
    for one in (package, parsing, bisenet):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return SmallBiSeNet


def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """facexlib's own BiSeNet, of this environment or of the WebUI's, without the rest of the package. Skips the test
    where it is absent."""
    folder = next((path for path in _places() if (path / "parsing" / "bisenet.py").is_file()), None)
    if folder is None:
        pytest.skip("facexlib is not installed, neither here nor in the WebUI")
    for name, place in (("facexlib", folder), ("facexlib.parsing", folder / "parsing")):
        shell = types.ModuleType(name)
        shell.__path__ = [str(place)]
        shell.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, shell)
    monkeypatch.delitem(sys.modules, "facexlib.parsing.bisenet", raising=False)
    return importlib.import_module("facexlib.parsing.bisenet").BiSeNet


def _places() -> list[Path]:
    found = importlib.util.find_spec("facexlib")
    own = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    return [*own, *checkout().glob("venv/lib/python3*/site-packages/facexlib")]


def write_parser(folder: Path, made: nn.Module, name: str = "parsing_bisenet.pth") -> Path:
    """Its weights under the published name."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(made.state_dict(), folder / name)
    return folder / name
