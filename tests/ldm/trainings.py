"""Trainings over the small checkpoint."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.trainer import Trainer
from tests.ldm.small import write_all

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 10


def write_data(root: Path) -> Path:
    """The small checkpoint, encoder and adapters, and a data set of which one picture is broken."""
    root = write_all(root)
    data = root / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        pixels = rng.integers(0, 256, (40 + i, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(data / f"{i:02}.png")
        (data / f"{i:02}.txt").write_text(f"picture number {i}")
    (data / "03.png").write_bytes(b"no picture")
    return root


def config(folder: Path, out: Path, **fields: Any) -> TrainConfig:
    values = {
        "base": str(folder / "small-eps.safetensors"), "data": str(folder / "data"),
        "encoder": str(folder / "encoders" / "tiny-vit.safetensors"), "out": str(out), "resolution": 64, "steps": 3,
        "batch": 2, "workers": 0, "lr": 1e-3, "tensorboard": False, "resampler_dim": 64, "resampler_heads": 1,
        "resampler_depth": 1,
    }  # fmt: skip
    return TrainConfig.parse({**values, **fields})


def train(folder: Path, out: Path, **fields: Any) -> Path:
    return Trainer(config(folder, out, **fields)).run().adapter


@functools.cache
def plain(folder: Path, **fields: Any) -> Path:
    """The folder of a training to compare others with, run once."""
    out = Path(tempfile.mkdtemp(prefix="plain-", dir=folder))
    train(folder, out, **fields)
    return out


@functools.cache
def _forking(said: Path) -> subprocess.Popen[str]:
    """processes.py, started once; what it and its processes say is in a file."""
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ldm.processes"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=file, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.close()  # it reads no further line, and ends
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def forked(runs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs trainings of several processes (processes.py); the exit codes of each run's processes, by rank."""
    said = Path(_said())
    process = _forking(said)
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(runs) + "\n")
    process.stdin.flush()
    answered, _, _ = select.select([process.stdout], [], [], 300)
    line = process.stdout.readline() if answered else ""
    if not line:  # what it answers later is not for the next one
        process.kill()
        _forking.cache_clear()
    assert line, f"no answer: {said.read_text()[-3000:]}"
    print(said.read_text())  # shown by pytest where the codes are not those wanted
    codes: list[list[int]] = json.loads(line)
    return codes


@functools.cache
def _said() -> str:
    handle, path = tempfile.mkstemp(prefix="ipadapter-processes-")
    os.close(handle)
    atexit.register(os.remove, path)
    return path


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
