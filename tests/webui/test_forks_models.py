"""Forge and reForge with other models than SD1.5 in half precision: SDXL's shape, weights in 8 bits, quantised ones."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .forks import FOLDERS, Fork, ForkGGUF, ForkXL, absent, checkout, largest, python
from .harness import REPO
from .test_forks_beside import PICTURE, ours


def started(fork: Fork) -> Iterator[Fork]:
    if reason := absent(fork.host):
        pytest.skip(reason)
    with fork as running:
        yield running


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def in_8_bits(request: pytest.FixtureRequest) -> Iterator[Fork]:
    """A fork that stores SD1.5's weights in 8 bits and computes in 32."""
    yield from started(Fork(request.param, extra=("--nowebui", "--unet-in-fp8-e4m3fn")))


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def on_sdxl(request: pytest.FixtureRequest) -> Iterator[Fork]:
    """A fork with a checkpoint of SDXL's shape."""
    yield from started(ForkXL(request.param))


@pytest.fixture(scope="module")
def quantised() -> Iterator[Fork]:
    """Forge with a GGUF UNet; reForge reads none."""
    for running in started(ForkGGUF("forge")):
        reply = running.post("/sdapi/v1/options", {"sd_model_checkpoint": "sd1.gguf",
                                                   "forge_additional_modules": ["rest.safetensors"]})  # fmt: skip
        assert reply.status == 200, reply.body
        yield running


def acts_as_its_own(fork: Fork) -> None:
    """Our picture is that of the fork's own IP-Adapter; off, and afterwards, it is the base."""
    one = {"steps": 1}
    base, drawn = fork.draw(**one), fork.draw(ours(), **one)
    assert largest(base, drawn) > 10
    assert largest(fork.draw(scripts=fork.own_adapter(PICTURE), **one), drawn) <= 1
    assert largest(fork.draw(ours(0), **one), base) == 0


def test_weights_stored_in_8_bits(in_8_bits: Fork) -> None:
    acts_as_its_own(in_8_bits)


def test_a_gguf_unet(quantised: Fork) -> None:
    acts_as_its_own(quantised)
    assert "gguf" in quantised.log.lower()


def test_layers_of_nf4() -> None:
    """Forge's own class of layers, whose weights are packed: the same picture as with the weights unpacked. A whole
    model needs CUDA there."""
    if reason := absent("forge"):
        pytest.skip(reason)
    can = "import torch, bitsandbytes; bitsandbytes.functional.quantize_4bit(torch.zeros(64, 64), quant_type='nf4')"
    if subprocess.run([python("forge"), "-c", can], capture_output=True, check=False).returncode:
        pytest.skip("Forge's Python has no bitsandbytes that works on the CPU (0.46 and later do)")
    command = [python("forge"), Path(__file__).with_name("nf4_layers.py"), REPO]
    run = subprocess.run(command, capture_output=True, text=True, cwd=checkout("forge"), check=False)
    assert run.returncode == 0, run.stderr
    assert "nf4 ForgeLoader4Bit" in run.stdout


def test_sdxl(on_sdxl: Fork) -> None:
    acts_as_its_own(on_sdxl)


def test_an_adapter_for_sd15_is_refused_on_sdxl(on_sdxl: Fork) -> None:
    reply = on_sdxl.draw(ours(model="sd1-base"))
    assert reply.status == 422
    assert "was made for SD1.5, but the loaded model is SDXL" in reply.json["detail"]["message"]
