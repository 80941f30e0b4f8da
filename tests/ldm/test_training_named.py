"""A training by an encoder's name, and the same name where its adapter draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.cli import main
from lib_ipadapter.errors import EncoderMissing
from tests.ldm.trainings import config, losses, train, write_data

timm = pytest.importorskip("timm", reason="timm is not installed")
NAME = "convnext_atto.d2_in1k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("small"))
    models = root / "models" / "clip_vision"
    models.mkdir(parents=True)
    torch.manual_seed(0)
    tower = timm.create_model("convnext_atto", num_classes=0)
    save_file(tower.state_dict(), models / f"{NAME}.safetensors")
    return root


def test_trained_and_drawn_by_the_name_of_the_encoder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    adapter = train(folder, tmp_path / "run", encoder=NAME, variant="plus", steps=1, lr=0.1)
    assert open_adapter(adapter).encoder == NAME
    train(folder, tmp_path / "run", encoder=NAME, variant="plus", steps=2, lr=0.1)  # resumed
    assert len(losses(tmp_path / "run")) == 2
    drawn = []
    for weight in ("0", "1"):
        out = tmp_path / f"{weight}.png"
        code = main([
            "generate", "--checkpoint", str(folder / "small-eps.safetensors"), "--adapter", str(adapter), "--encoder",
            NAME, "--image", str(folder / "data" / "00.png"), "--prompt", "a picture", "--weight", weight, "--steps",
            "1", "--width", "64", "--height", "64", "--device", "cpu", "--out", str(out),
        ])  # fmt: skip
        assert code == 0
        drawn.append(np.asarray(Image.open(out)))
    assert not np.array_equal(*drawn)


def test_a_name_without_a_file_says_where_it_belongs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderMissing, match=rf"{NAME} was not found\. Put its weights .*timm/{NAME}.*clip_vision"):
        train(folder, tmp_path / "run", encoder=NAME)
    assert config(folder, tmp_path, encoder=NAME).encoder == NAME
