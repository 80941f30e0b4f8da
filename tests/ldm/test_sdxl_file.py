"""SDXL in one file: what it is read as, what is refused, and trainings over it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.cli import main
from lib_ipadapter.errors import ModelError
from lib_ipadapter.standalone.host import Standalone
from lib_ipadapter.standalone.sdxl import UnetShape, conditions, unet_shape
from lib_ipadapter.training.base import open_base
from lib_ipadapter.training.objective import Draws, loss
from lib_ipadapter.training.trainer import Trainer
from tests.ldm.trainings import config, losses, tensors, train
from tests.sdxl_file import SHAPE, mark, write_sdxl
from tests.training_pictures import pictures
from tests.webui.networks import write_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sdxl")
    write_sdxl(root / "small-eps.safetensors")
    write_sdxl(root / "v.safetensors", v_pred=mark())
    write_sdxl(root / "zero.safetensors", v_pred=mark(), ztsnr=mark())
    write_encoder(root / "encoders")
    pictures(root / "data", 6)
    return root


def test_its_shape_is_read_off_its_tensors(folder):
    prefix = "model.diffusion_model."
    state = load_file(str(folder / "small-eps.safetensors"))
    shapes = {key[len(prefix) :]: tuple(v.shape) for key, v in state.items() if key.startswith(prefix)}
    found = unet_shape(shapes)
    assert found == SHAPE
    # Stability's own: levels of 2 residual blocks, 320 to 1280 channels, 2 and 10 blocks a transformer
    full = UnetShape(4, 4, 320, (1, 2, 4), (2, 2, 2), {}, 2048, 2816)
    assert dataclasses.replace(found).head == full.head == 64


@pytest.mark.parametrize(
    ("name", "prediction", "v", "zero"),
    [("small-eps", "auto", False, False), ("v", "auto", True, False), ("zero", "auto", True, True),
     ("small-eps", "v-zero-snr", True, True), ("small-eps", "v", True, False), ("zero", "epsilon", False, False)],
)  # fmt: skip
def test_what_it_predicts_is_said_by_the_file_or_by_the_user(folder, name, prediction, v, zero):
    base = open_base(folder / f"{name}.safetensors", None, CPU, torch.float32, prediction)
    assert base.v == v
    assert (base.alphas[-1] == 0) == zero


def test_v_with_zero_snr_is_the_formula(folder):
    """At the last timestep x is noise alone and v = -x0: what the noise was does not count in the target."""
    base = open_base(folder / "zero.safetensors", None, CPU, torch.float32)
    asked: dict[str, torch.Tensor] = {}

    def denoise(x, t, text, sizes, features):
        asked["x"] = x
        return torch.zeros_like(x)

    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(1, dtype=torch.bool)
    draws = Draws(noise, torch.zeros_like(noise), torch.tensor([999]), kept, kept)
    moments = torch.cat([clean, torch.zeros_like(clean)], 1)
    found = loss(base, denoise, moments, ["a"], torch.zeros(1, 2), torch.zeros(1, 2), None, draws)
    assert torch.equal(asked["x"], noise)
    torch.testing.assert_close(found, clean.square().mean())


def test_conditions_by_hand():
    """Frequencies are 1, 10000^(-1/2): cosines first."""
    pooled, sizes = torch.tensor([[7.0, 8.0]]), torch.tensor([[0.0, 100, 1, 0, 0, 0]])
    found = conditions(pooled, sizes, 4)[0]
    assert found.shape == (2 + 24,)
    assert found[:2].tolist() == [7, 8]
    assert found[2:6].tolist() == [1, 1, 0, 0]
    wanted = torch.tensor([100.0, 1.0])
    torch.testing.assert_close(found[6:10], torch.cat([wanted.cos(), wanted.sin()]), rtol=1e-4, atol=1e-4)
    wanted = torch.tensor([1.0, 0.01])
    torch.testing.assert_close(found[10:14], torch.cat([wanted.cos(), wanted.sin()]))


OWN = {"resolution": 64}


@pytest.mark.parametrize(
    "fields",
    [{}, {"base": "zero", "buckets": True, "bucket_step": 32, "cache": True, "cache_text": True},
     {"variant": "plus", "checkpointing": True}],
    ids=str,
)  # fmt: skip
def test_a_training_over_it_resumes_bitwise(folder, tmp_path, fields):
    own = {**OWN, **fields}
    if "base" in own:
        own["base"] = str(folder / f"{own['base']}.safetensors")
    whole = train(folder, tmp_path / "whole", steps=5, **own)
    train(folder, tmp_path / "parts", steps=2, **own)
    part = train(folder, tmp_path / "parts", steps=5, **own)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert np.isfinite(losses(tmp_path / "whole")).all()
    a, b = tensors(whole), tensors(part)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert Adapter.load(whole).spec.context == 128


def test_caches_change_nothing_bit_for_bit(folder, tmp_path):
    train(folder, tmp_path / "live", **OWN)
    train(folder, tmp_path / "cached", cache=True, cache_text=True, **OWN)
    assert losses(tmp_path / "live") == losses(tmp_path / "cached")


def test_samples_are_drawn(folder, tmp_path):
    train(folder, tmp_path, sample_every=3, sample_steps=2, **OWN)
    with Image.open(tmp_path / "samples" / "step-00000003.png") as grid:
        assert grid.size == (4 * 64, 4 * 64)


def test_generate_and_evaluate_take_it(folder, tmp_path, capsys):
    adapter = train(folder, tmp_path / "run", **OWN, lr=0.05)
    for folder_of, weight in (("a", "1"), ("b", "0")):
        (tmp_path / folder_of).mkdir()
        assert main([
            "generate", "--checkpoint", str(folder / "small-eps.safetensors"), "--adapter", str(adapter),
            "--encoder", str(folder / "encoders" / "tiny-vit.safetensors"), "--image", str(folder / "data" / "00.jpg"),
            "--weight", weight, "--prompt", "a star", "--steps", "2", "--seed", "1", "--width", "64", "--height", "96",
            "--device", "cpu", "--out", str(tmp_path / folder_of / "x.png"),
        ]) == 0  # fmt: skip
    a, b = (np.asarray(Image.open(tmp_path / name / "x.png")) for name in ("a", "b"))
    assert a.shape == (96, 64, 3)
    assert not np.array_equal(a, b)
    plain = Standalone.load(folder / "small-eps.safetensors", "none.yaml")
    drawn = plain.generate("a star", steps=2, seed=1, size=(64, 96))[0]
    assert np.array_equal(np.asarray(drawn), b)
    assert plain.side == 1024


def test_what_is_no_whole_sdxl_is_said(folder, tmp_path, capsys):
    state = load_file(str(folder / "small-eps.safetensors"))
    for gone, message in (
        ("conditioner.embedders.1.", "no text tower of open_clip's"),
        ("model.diffusion_model.middle_block.", "keys missing"),
        ("first_stage_model.decoder.conv_in.", "the autoencoder is none that is known"),
    ):
        left = {key: value for key, value in state.items() if not key.startswith(gone)}
        save_file(left, str(tmp_path / "cut.safetensors"))
        with pytest.raises(ModelError, match=message):
            open_base(tmp_path / "cut.safetensors", None, CPU, torch.float32)
    assert json.dumps(sorted(SHAPE.depths))
    with pytest.raises(ModelError, match="prediction: got v, expected auto"):
        open_base(tmp_path, None, CPU, torch.float32, "v")
    trainer = Trainer(config(folder, tmp_path / "out", **OWN))
    assert trainer.base.sdxl
    trainer.denoiser.remove()
