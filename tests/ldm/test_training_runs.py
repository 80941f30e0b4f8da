"""A training's run: stopped, gone on with, its checkpoints, its samples, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.cli import main
from lib_ipadapter.errors import ConfigError, DataError, FileError, TrainingError
from lib_ipadapter.training import objective
from lib_ipadapter.training.trainer import Trainer
from tests.full_disk import full_disk
from tests.ldm.trainings import PICTURES, ROOT, config, losses, plain, tensors, train, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("small"))


def test_ctrl_c_saves_and_the_same_command_goes_on(folder, tmp_path):
    out = tmp_path / "run"
    values = config(folder, out, steps=2000, save_every=1000).as_dict()
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "lib_ipadapter", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert "start it again to go on from there" in said
    done = len(losses(out))
    assert (out / "ip_adapter.safetensors").is_file()
    train(folder, out, steps=done + 1)
    assert len(losses(out)) == done + 1


@pytest.mark.parametrize("moment", ["loss", "backward", "saving"])
def test_ctrl_c_is_heard_at_any_moment(folder, tmp_path, monkeypatch, moment):
    trainer = Trainer(config(folder, tmp_path, steps=8, save_every=2))
    owner, name = {
        "loss": (objective, "loss"), "backward": (trainer.accelerator, "backward"), "saving": (trainer, "_save")
    }[moment]  # fmt: skip
    real, calls = getattr(owner, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)
    outcome = trainer.run()
    assert outcome.stopped
    assert outcome.step == {"loss": 1, "backward": 2, "saving": 3}[moment]


def test_a_file_stops_it_as_ctrl_c_does(folder, tmp_path, monkeypatch):
    (tmp_path / "stop").touch()  # of the training before
    trainer = Trainer(config(folder, tmp_path, steps=8))
    real, calls = objective.loss, []

    def asked(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            (tmp_path / "stop").touch()
        return real(*args, **kwargs)

    monkeypatch.setattr(objective, "loss", asked)
    before = time.time()
    outcome = trainer.run()
    assert outcome.stopped
    assert outcome.step == 3
    times = [json.loads(line)["time"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert before - 1 <= times[0] <= times[-1] <= time.time() + 1
    assert not train(folder, tmp_path, steps=5).with_name("stop").exists()


def test_broken_pictures_are_passed_over_and_listed_once(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path))
    batches = trainer.feed.batches(0)
    seen = [key for _ in range(12) for key in next(batches).keys]
    trainer.denoiser.remove()
    assert len(seen) == 24
    assert set(seen) == {f"{i:02}.png" for i in range(PICTURES)} - {"03.png"}
    lines = (tmp_path / "broken.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["03.png"]


def test_the_last_checkpoints_are_kept_and_nothing_half_written(folder, tmp_path):
    train(folder, tmp_path, steps=5, save_every=1, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000005",
    ]
    assert (tmp_path / "config.yaml").is_file()


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(folder, tmp_path, monkeypatch):
    real, calls = objective.loss, []

    def poisoned(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setattr(objective, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"step 4 .*the checkpoint of step 2 is kept"):
        train(folder, tmp_path, steps=8, save_every=2)
    assert all(value.isfinite().all() for value in tensors(tmp_path / "ip_adapter.safetensors").values())


def test_weights_that_are_no_numbers_are_not_kept(folder, tmp_path, monkeypatch):
    """A gradient may overflow while the loss is a number still."""
    real, calls = objective.loss, []

    def overflowing(*args: Any) -> torch.Tensor:
        calls.append(1)
        nothing = next(args[1].parameters()).sum() * 0
        return real(*args) + (nothing.sqrt() if len(calls) == 3 else nothing)

    monkeypatch.setattr(objective, "loss", overflowing)
    with pytest.raises(TrainingError, match=r"weights after step 3 .*the checkpoint of step 2 is kept"):
        train(folder, tmp_path, steps=3, save_every=2)
    assert all(value.isfinite().all() for value in tensors(tmp_path / "ip_adapter.safetensors").values())


def test_what_was_logged_before_the_first_checkpoint_is_done_again(folder, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "loss": 9.0}\n')
    train(folder, tmp_path, steps=2)
    assert len(losses(tmp_path)) == 2
    assert 9.0 not in losses(tmp_path)


def test_data_without_a_picture_is_said_with_samples_too(folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not one picture of the data can be read"):
        train(folder, tmp_path / "run", data=str(data), sample_every=1)


FULL = r"cannot be written to: .*The last whole checkpoint is kept"


def test_a_full_disk_is_said_and_the_last_checkpoint_kept(folder, tmp_path):
    """torch raises then what is no OSError, and nothing at all where it is a file's last bytes that fail."""
    train(folder, tmp_path, steps=2, save_every=2)
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*"))
    for size in (largest // 2, largest - 1):
        with pytest.raises(FileError, match=FULL), full_disk(size):
            train(folder, tmp_path, steps=4, save_every=2)
        assert Adapter.load(tmp_path / "ip_adapter.safetensors").spec.variant == "base"
        assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000002"]
    train(folder, tmp_path, steps=4, save_every=2)
    assert len(losses(tmp_path)) == 4


@pytest.mark.parametrize("fields", [{"sample_every": 3, "sample_steps": 1}, {"tensorboard": True}])
def test_a_full_disk_under_what_is_shown_is_said(folder, tmp_path, fields):
    if "tensorboard" in fields:
        pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    train(folder, tmp_path, steps=2, **fields)
    with pytest.raises(FileError, match=FULL), full_disk(2000):
        train(folder, tmp_path, steps=30, **fields)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000002"]


def test_samples_are_drawn_and_change_nothing_in_the_training(folder, tmp_path):
    data = str(folder / "data")  # of which the fourth picture is broken, and passed over
    train(folder, tmp_path, sample_every=2, sample_steps=2, steps=3, sample_references=data)
    assert losses(tmp_path) == losses(plain(folder))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-00000002.png", "step-00000003.png"]
    with Image.open(tmp_path / "samples" / names[-1]) as grid:
        assert grid.size == (4 * 64, 4 * 64)


def test_samples_show_the_base_alone_at_zero(folder, tmp_path):
    """Whatever the last batch was."""
    columns = []
    for batch in (2, 3):
        train(folder, tmp_path / str(batch), sample_every=1, sample_steps=1, steps=1, batch=batch, lr=0.5)
        with Image.open(tmp_path / str(batch) / "samples" / "step-00000001.png") as grid:
            columns.append([np.asarray(grid.crop((64 * x, 0, 64 * x + 64, 256))) for x in (1, 3)])
    assert np.array_equal(columns[0][0], columns[1][0])
    assert not np.array_equal(columns[0][1], columns[1][1])


def test_a_damaged_checkpoint_is_said(folder, tmp_path):
    train(folder, tmp_path, steps=1)
    (tmp_path / "checkpoints/step-00000001/state/optimizer.bin").write_bytes(b"hello {")
    with pytest.raises(FileError, match=r"step-00000001: this checkpoint cannot be resumed .*delete it"):
        train(folder, tmp_path, steps=2)


def test_another_training_in_the_folder_is_refused(folder, tmp_path):
    train(folder, tmp_path)
    with pytest.raises(ConfigError, match=r"lr was 0\.001"):
        Trainer(config(folder, tmp_path, lr=1e-4))


def test_errors_of_the_command_line_are_a_line(folder, tmp_path, capsys):
    assert main(["train", "--lr", "fast"]) == 2
    assert "lr: got 'fast', expected a number" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    base, encoder = str(folder / "small-eps.safetensors"), str(folder / "encoders" / "tiny-vit.safetensors")
    arguments = [
        "train",
        "--base",
        base,
        "--data",
        str(empty),
        "--encoder",
        encoder,
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 2
    assert "no pictures in it" in capsys.readouterr().err
    assert main([*arguments[:4], str(folder / "data"), *arguments[5:], "--resolution", "72"]) == 2
    assert "a multiple of 64" in capsys.readouterr().err


def test_a_cosine_is_another_one_with_other_steps(folder, tmp_path):
    train(folder, tmp_path, schedule="cosine", warmup=1, steps=4)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-3, 1e-3, 0.75e-3, 0.25e-3])
    with pytest.raises(ConfigError, match="steps was 4"):
        Trainer(config(folder, tmp_path, schedule="cosine", warmup=1, steps=5))
