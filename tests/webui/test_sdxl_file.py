"""SDXL in one file against Stability's own code, as the WebUI of the tests has it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from lib_ipadapter.standalone.sdxl import SCALE, conditions
from lib_ipadapter.standalone.text import tokenize
from lib_ipadapter.training.base import Sizes, open_base
from tests.sdxl_file import SIZE_WIDTH, write_sdxl
from tests.webui import harness

SCRIPT = Path(__file__).with_name("sdxl_reference.py")
TEXTS = ["a red star on a blue ground", ""]


def test_text_unet_and_autoencoder_are_the_webuis_own(tmp_path: Path):
    if missing := harness.absent():
        pytest.skip(missing)
    path = write_sdxl(tmp_path / "small.safetensors")
    draw = torch.Generator().manual_seed(0)
    given = {
        "x": torch.randn(2, 4, 8, 12, generator=draw), "times": torch.tensor([3, 800]),
        "sizes": torch.tensor([[100.0, 150, 0, 7, 64, 96], [1024, 768, 3, 0, 64, 96]]),
        "ids": tokenize(TEXTS, pad_with_end=True), "zeros": tokenize(TEXTS, pad_with_end=False),
        "pixels": torch.rand(1, 3, 64, 96, generator=draw) * 2 - 1, "latents": torch.randn(1, 4, 8, 12, generator=draw),
    }  # fmt: skip
    save_file(given, str(tmp_path / "in.safetensors"))
    command = [
        str(harness.python()),
        str(SCRIPT),
        str(path),
        str(tmp_path / "in.safetensors"),
        str(tmp_path / "out.safetensors"),
    ]
    done = subprocess.run(command, cwd=harness.checkout(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(str(tmp_path / "out.safetensors"))
    base = open_base(path, None, torch.device("cpu"), torch.float32)
    text = base.text(TEXTS)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(text.tokens, theirs["tokens"], **close)
    torch.testing.assert_close(text.pooled, theirs["pooled"], **close)
    torch.testing.assert_close(conditions(text.pooled, given["sizes"], SIZE_WIDTH), theirs["conditions"], **close)
    with torch.no_grad():
        predicted = base.predict(given["x"], given["times"], text, Sizes(given["sizes"]))
        moments, decoded = base.moments(given["pixels"]), base.decode(given["latents"] * SCALE)
    torch.testing.assert_close(predicted, theirs["predicted"], **close)
    mean, variance = theirs["moments"].chunk(2, 1)
    torch.testing.assert_close(moments, torch.cat([mean, (0.5 * variance).exp()], 1) * SCALE, **close)
    torch.testing.assert_close(decoded, theirs["decoded"].clamp(-1, 1), **close)


def test_the_yaml_beside_a_small_one_says_what_its_tensors_do_not(tmp_path: Path):
    """The WebUI's own small SDXL: one tower, heads of 16, sizes of 32."""
    if missing := harness.absent():
        pytest.skip(missing)
    path = harness.checkpoint("sdxl")
    base = open_base(path, None, torch.device("cpu"), torch.float32)
    assert len(base.layers) == 70
    assert {layer.width // layer.heads for layer in base.layers} == {16}
    text = base.text(TEXTS)
    assert text.tokens.shape == (2, 77, 256)
    assert text.pooled is not None
    with torch.no_grad():
        found = base.predict(torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), text, Sizes(torch.ones(2, 6) * 64))
    assert found.isfinite().all()
    assert found.std() > 1e-3
