"""A1: a TorchScript archive under the name of an adapter, a checkpoint, an encoder or a state never runs, whichever
command opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.cli import main
from tests.hostile_files import write_torchscript
from tests.ldm.small import noise_picture
from tests.ldm.trainings import train, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("small"))


GENERATE = ["generate", "--prompt", "a cat", "--device", "cpu", "--width", "64", "--height", "64", "--steps", "2",
            "--out", "{out}/a.png", "--encoder-dir", "{good}/encoders"]  # fmt: skip
TRAIN = ["train", "--data", "{good}/data", "--out", "{out}/run", "--resolution", "64", "--steps", "1", "--batch", "1",
         "--workers", "0"]  # fmt: skip
BASE = ["--base", "{good}/small-eps.safetensors"]
ENCODER = ["--encoder", "{good}/encoders/tiny-vit.safetensors"]
COMMANDS = {
    "generate with an adapter": [*GENERATE, "--checkpoint", "{good}/small-eps.safetensors", "--adapter", "{evil}",
    "--image",
                                 "{good}/reference.png"],
    "generate with a checkpoint": [*GENERATE, "--checkpoint", "{evil}", "--config", "{good}/small-eps.yaml"],
    "train from an adapter": [*TRAIN, *BASE, *ENCODER, "--init", "{evil}"],
    "train from an adapter's layers": [*TRAIN, *BASE, *ENCODER, "--init-layers", "{evil}"],
    "train on a checkpoint": [*TRAIN, *ENCODER, "--base", "{evil}"],
    "train with an encoder": [*TRAIN, *BASE, "--encoder", "{evil}"],
}  # fmt: skip


@pytest.mark.parametrize("what", COMMANDS)
@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".safetensors"])
def test_no_command_runs_it(
    folder: Path, tmp_path: Path, what: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trap, evil = tmp_path / "trap", tmp_path / f"evil{suffix}"
    write_torchscript(evil, trap)
    evil.with_suffix(".yaml").write_text((folder / "small-eps.yaml").read_text())
    noise_picture(4, (64, 64)).save(folder / "reference.png")
    places = {"good": folder, "out": tmp_path, "evil": evil}
    assert main([argument.format(**places) for argument in COMMANDS[what]]) == 2
    assert "evil" + suffix + ": refused: a TorchScript archive" in capsys.readouterr().err
    assert not trap.exists()


@pytest.mark.parametrize(
    "name", ["ema.pt", "state/optimizer.bin", "state/pytorch_model.bin", "state/random_states_0.pkl"]
)
def test_a_resumed_training_does_not_run_it(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path / "out", steps=1, ema=0.9)
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert (checkpoint / name).is_file()
    write_torchscript(checkpoint / name, tmp_path / "trap")
    with pytest.raises(Exception, match="TorchScript"):
        train(folder, tmp_path / "out", steps=1, ema=0.9)
    assert not (tmp_path / "trap").exists()
