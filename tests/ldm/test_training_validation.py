"""The validation loss, and trainings with augmentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.errors import DataError
from lib_ipadapter.training.run_folder import ADAPTER
from lib_ipadapter.training.trainer import Trainer
from lib_ipadapter.training.validation import TIMES, Validation
from tests.ldm.trainings import config, losses, plain, tensors, train, write_data
from tests.training_pictures import pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("small"))
    pictures(root / "held", 3, broken=(0,))
    return root


def validated(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["validation"] for row in rows if "validation" in row}


def test_it_is_logged_beside_the_loss_and_changes_nothing(folder, tmp_path):
    own = {"validation": str(folder / "held"), "validation_every": 2, "steps": 5}
    a = train(folder, tmp_path / "with", **own)
    without = plain(folder, steps=5)
    assert losses(tmp_path / "with") == losses(without)
    ours, theirs = tensors(a), tensors(without / ADAPTER)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    found = validated(tmp_path / "with")
    assert list(found) == [2, 4, 5]
    assert len(set(found.values())) == 3
    train(folder, tmp_path / "parts", **{**own, "steps": 3})
    train(folder, tmp_path / "parts", **own)
    assert {**validated(tmp_path / "parts"), 3: 0.0} == {**found, 3: 0.0}


def test_it_is_the_mean_squared_error_at_fixed_times_and_noise(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path, validation=str(folder / "held")))
    validation = trainer.validation
    assert isinstance(validation, Validation)
    assert len(validation.held) == 2  # one of three is broken
    first = validation.loss(trainer.denoiser)
    assert validation.loss(trainer.denoiser) == first
    from lib_ipadapter.training.data import draws
    from lib_ipadapter.training.validation import _SEED

    errors = []
    for number, one in enumerate(validation.held):
        for place, share in enumerate(TIMES):
            noise = torch.randn((1, 4, 8, 8), generator=draws(_SEED, number * len(TIMES) + place))
            time = torch.tensor([round(share * 999)])
            alpha = trainer.base.alphas[time]
            x = alpha.sqrt() * one.moments[:, :4] + (1 - alpha).sqrt() * noise
            with torch.no_grad():
                output = trainer.denoiser(x, time, one.text, None, one.features)
            errors.append(float((output - noise).square().mean()))
    trainer.denoiser.remove()
    assert first == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_pictures_that_cannot_be_read_are_an_error(folder, tmp_path):
    pictures(tmp_path / "bad", 1, broken=(0,))
    with pytest.raises(DataError, match="not one picture of validation can be read"):
        Trainer(config(folder, tmp_path / "out", validation=str(tmp_path / "bad")))


AUGMENTED = {"reference_crop": 0.3, "reference_flip": 0.5, "reference_colour": 0.2}


def test_the_reference_is_augmented_over_cached_latents_as_without_a_cache(folder, tmp_path):
    train(folder, tmp_path / "live", steps=5, **AUGMENTED)
    train(folder, tmp_path / "cached", steps=5, cache=True, workers=1, **AUGMENTED)
    assert losses(tmp_path / "live") == losses(tmp_path / "cached")
    assert losses(tmp_path / "live") != losses(plain(folder, steps=5))


def test_going_on_with_augmentation_is_bitwise_what_not_stopping_is(folder, tmp_path):
    own = {**AUGMENTED, "flip": 0.5, "random_crop": True, "noise_offset": 0.1}
    train(folder, tmp_path / "whole", steps=5, **own)
    train(folder, tmp_path / "parts", steps=2, **own)
    train(folder, tmp_path / "parts", steps=5, workers=2, **own)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
