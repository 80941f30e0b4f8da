"""Trainings over pictures of several shapes, and in stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.errors import ConfigError
from lib_ipadapter.training.run_folder import ADAPTER
from lib_ipadapter.training.trainer import Trainer
from tests.ldm.trainings import config, forked, losses, plain, tensors, train, write_data

SHAPES = [(200, 80), (70, 160), (90, 90)]  # width, height: buckets 192x64, 64x192 and 128x128
BUCKETS = {"buckets": True, "resolution": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("small"))
    data = root / "shapes"
    data.mkdir()
    rng = np.random.default_rng(1)
    for i in range(14):
        width, height = SHAPES[i % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(data / f"{i:02}.png")
        (data / f"{i:02}.txt").write_text(f"shape {i}")
    whole = (data / "04.png").read_bytes()
    (data / "04.png").write_bytes(whole[: len(whole) // 2])  # its head says its size, and it cannot be decoded
    (data / "05.png").write_bytes(b"no picture")
    return root


def both(folder: Path, **fields):
    return {"data": str(folder / "shapes"), **BUCKETS, **fields}


def test_a_batch_is_of_one_bucket_and_keeps_the_pictures_shape(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path, **both(folder)))
    batches = trainer.feed.batches(0)
    shapes = set()
    for _ in range(24):
        batch = next(batches)
        height, width = batch.latent_shape[1:]
        shapes.add((8 * width, 8 * height))
        for key in batch.keys:
            with Image.open(folder / "shapes" / key) as picture:
                assert (picture.width > picture.height) == (width > height)
                assert (picture.width < picture.height) == (width < height)
    assert len(shapes) == 3
    trainer.denoiser.remove()
    listed = {line.split("\t")[0] for line in (tmp_path / "broken.txt").read_text().splitlines()}
    assert listed == {"04.png", "05.png"}


CACHED = {"cache": True, "cache_text": True}


@pytest.mark.parametrize("fields", [CACHED, {"workers": 2, "accumulate": 2}], ids=str)
def test_going_on_is_bitwise_what_not_stopping_is(folder, tmp_path, fields):
    whole = plain(folder, steps=7, **both(folder, **fields))
    train(folder, tmp_path / "parts", steps=3, **both(folder, **fields))
    part = train(folder, tmp_path / "parts", steps=7, **both(folder, **fields))
    assert losses(whole) == losses(tmp_path / "parts")
    a, b = tensors(whole / ADAPTER), tensors(part)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_cache_changes_nothing_bit_for_bit(folder):
    live, cached = (plain(folder, steps=7, **both(folder, **fields)) for fields in ({}, CACHED))
    assert losses(live) == losses(cached)


STAGES = "64px x 3steps x 2, 128px x 2steps x 1"


@pytest.mark.parametrize("fields", [{}, {"buckets": True, "cache": True}], ids=str)
def test_stages_go_on_across_their_border(folder, tmp_path, fields):
    own = {"data": str(folder / "shapes"), "resolution": None, "steps": 5, "stages": STAGES, **fields}
    train(folder, tmp_path / "whole", **own)
    trainer = Trainer(config(folder, tmp_path / "seen", **own))
    assert trainer.feed.resolution == trainer.feed.stages[-1].resolution, "of samples, validation and the file's header"
    sizes = [len(b.keys) for b, _ in zip(trainer.feed.batches(0), range(5), strict=False)]
    areas = [b.latent_shape[1] * b.latent_shape[2] for b, _ in zip(trainer.feed.batches(0), range(5), strict=False)]
    trainer.denoiser.remove()
    assert sizes == [2, 2, 2, 1, 1]
    assert areas[:3] == [64] * 3
    assert set(areas[3:]) <= {256, 192}
    out = tmp_path / "parts"
    cut_short = Trainer(config(folder, out, **own, save_every=1))
    real, calls = cut_short._save, []

    def stopping(step: int) -> None:
        real(step)
        calls.append(step)
        cut_short._asked = len(calls) >= 2

    cut_short._save = stopping
    assert cut_short.run().step == 3
    train(folder, out, **own)
    assert losses(out) == losses(tmp_path / "whole")
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]


def test_two_processes_take_what_one_with_twice_the_batch_takes(folder, tmp_path):
    fields = both(folder, steps=4)
    two = config(folder, tmp_path / "two", **{**fields, "batch": 1}).as_dict()
    assert forked([{"config": two, "world": 2}]) == [[0, 0]]
    one = losses(plain(folder, **{**fields, "steps": 7}))
    np.testing.assert_allclose(losses(tmp_path / "two"), one[:4], rtol=1e-5)


def test_what_cannot_be_is_said(folder, tmp_path):
    with pytest.raises(ConfigError, match="bucket_step: got 8, expected a multiple of 64 for this base"):
        Trainer(config(folder, tmp_path / "a", **both(folder, bucket_step=8)))
    with pytest.raises(ConfigError, match="resolution: got 96, expected a multiple of 64"):
        Trainer(config(folder, tmp_path / "b", resolution=None, stages="96px x 3steps x 1", steps=3))
    shutil.rmtree(tmp_path, ignore_errors=True)
