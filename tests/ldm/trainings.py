"""Trainings over the small checkpoint."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
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
    out = folder / "-".join(["plain", *(f"{key}={fields[key]}" for key in sorted(fields))])
    train(folder, out, **fields)
    return out


def forked(folder: Path, runs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs trainings of several processes (processes.py); the exit codes of each run's processes, by rank."""
    path = folder / "runs.json"
    path.write_text(json.dumps(runs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.ldm.processes", str(path)], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr)  # shown by pytest where the codes are not those wanted
    codes: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return codes


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
