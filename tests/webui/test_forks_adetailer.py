"""ADetailer on Forge, reForge and classic: its details are drawn with the unit, or without it, as the unit says. Its
detector is replaced as in test_adetailer.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .forks import FOLDERS, Fork, absent
from .harness import _link, decode
from .logs import missing_package
from .test_adetailer import BOXES, CONFIG, FOLDER, MODEL, PACKAGES, details, outside, part
from .test_forks_beside import ours


class ForkWithADetailer(Fork):
    """With ADetailer as a further extension."""

    def _prepare(self) -> None:
        super()._prepare()
        _link(FOLDER, self.data / "extensions" / "adetailer")
        folder = self.data / "models" / "adetailer"
        folder.mkdir()
        (folder / MODEL).write_text("\n".join(",".join(map(str, box)) for box in BOXES))


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fork]:
    if reason := absent(request.param):
        pytest.skip(reason)
    if not (FOLDER / "scripts" / "!adetailer.py").is_file():
        pytest.skip(f"no ADetailer at {FOLDER} (set ADETAILER_DIR)")
    path = tmp_path_factory.mktemp("packages")
    if PACKAGES.is_dir():
        shutil.copytree(PACKAGES, path, dirs_exist_ok=True)
    shutil.copy(Path(__file__).with_name("detector") / "ultralytics.py", path)
    flags = ("--nowebui", "--ad-no-huggingface")
    with ForkWithADetailer(request.param, extra=flags, path=path, config=CONFIG) as running:
        if missing := missing_package(running.log, "adetailer"):
            pytest.skip(f"ADetailer cannot load without the package {missing}")
        yield running


def drawn(fork: Fork, *units: dict[str, Any]) -> torch.Tensor:
    reply = fork.draw(*units, scripts=details(), steps=2)
    assert reply.status == 200, f"{reply.body[:1000]!r}\n{fork.log[-3000:]}"
    return decode(reply.json["images"][0])


def test_details_are_drawn_with_the_unit_or_without_it(beside: Fork) -> None:
    """The forks' encoder of pictures draws from torch's own random numbers, so no detail comes twice."""
    base, again = drawn(beside), drawn(beside)
    only, without = (drawn(beside, {**ours(), "in_detailer": how}) for how in ("only", "no"))
    assert torch.equal(outside(base), outside(again))
    assert torch.equal(outside(base), outside(only))
    assert not torch.equal(outside(base), outside(without))
    for box in BOXES:
        chance = (part(again, box) - part(base, box)).abs().mean()
        assert (part(only, box) - part(base, box)).abs().mean() > 5 * chance + 1
