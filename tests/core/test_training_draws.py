"""What is drawn for each picture of a training, what becomes of it, and the learning rate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ipadapter.training import objective
from lib_ipadapter.training.base import Text
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.data import draws as generator_of
from lib_ipadapter.training.objective import Draws, draw
from lib_ipadapter.training.trainer import _rate


def config(**fields: Any) -> TrainConfig:
    return TrainConfig.parse({"base": "b", "data": "d", "encoder": "e", "out": "o", **fields})


def drawn(count: int, **fields: Any) -> Draws:
    return draw([generator_of(0, i) for i in range(count)], (1, 1, 1), 10, config(**fields))


def test_images_and_texts_are_dropped_in_their_fractions() -> None:
    """Exclusive: 0.1 image only, 0.2 text only, 0.3 both."""
    found = drawn(4000, drop_image=0.1, drop_text=0.2, drop_both=0.3)
    image, text = found.no_image, found.no_text
    for mask, expected in (
        (image & ~text, 0.1),
        (text & ~image, 0.2),
        (image & text, 0.3),
        (~image & ~text, 0.4),
    ):
        assert mask.float().mean().item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("drop_image", True, False), ("drop_text", False, True), ("drop_both", True, True)],
)
def test_a_fraction_of_one_drops_all_and_of_zero_none(name: str, image: bool, text: bool) -> None:
    zeros: dict[str, Any] = {"drop_image": 0.0, "drop_text": 0.0, "drop_both": 0.0}
    found = drawn(200, **{**zeros, name: 1.0})
    assert found.no_image.tolist() == [image] * 200
    assert found.no_text.tolist() == [text] * 200
    none = drawn(200, **zeros)
    assert not (none.no_image | none.no_text).any()


def test_every_timestep_is_drawn() -> None:
    assert sorted(set(drawn(500).times.tolist())) == list(range(10))


def test_noise_and_spread_are_independent_and_the_same_for_the_same_position() -> None:
    found = drawn(2000)
    noise, spread = found.noise.flatten(), found.spread.flatten()
    assert abs(torch.corrcoef(torch.stack([noise, spread]))[0, 1].item()) < 0.08
    assert noise.std().item() == pytest.approx(1, abs=0.06)
    again = drawn(3)
    assert torch.equal(again.noise, found.noise[:3])
    assert torch.equal(again.times, found.times[:3])


@pytest.mark.parametrize("v", [False, True])
def test_the_model_is_asked_for_what_the_paper_says(v: bool) -> None:
    """x_t of a sample of the posterior, dropped texts empty, the feature without a picture where the image is
    dropped."""
    alphas, times = torch.tensor([0.9, 0.4, 0.1]), torch.tensor([2, 0, 1])
    mean, std, spread, noise = torch.arange(48.0).reshape(4, 3, 1, 2, 2)
    asked: dict[str, Any] = {}

    def text(captions: list[str]) -> Text:
        asked["captions"] = captions
        return Text(torch.zeros(len(captions), 1, 1))

    def denoise(x: Tensor, t: Tensor, text: Text, sizes: None, features: Tensor) -> Tensor:
        asked.update(x=x, t=t, features=features)
        return torch.zeros_like(x)

    found = objective.loss(
        SimpleNamespace(device=torch.device("cpu"), alphas=alphas, v=v, text=text),  # type: ignore[arg-type]
        denoise,  # type: ignore[arg-type]
        torch.cat([mean, std], 1),
        ["a", "b", "c"],
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor([[9.0]]),
        None,
        Draws(noise, spread, times, torch.tensor([True, False, False]), torch.tensor([False, False, True])),
    )
    alpha = alphas[times].reshape(3, 1, 1, 1)
    clean = mean + std * spread
    assert asked["captions"] == ["a", "b", ""]
    assert asked["features"].tolist() == [[9.0], [2.0], [3.0]]
    assert asked["t"].tolist() == [2, 0, 1]
    torch.testing.assert_close(asked["x"], alpha.sqrt() * clean + (1 - alpha).sqrt() * noise)
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if v else noise
    torch.testing.assert_close(found, target.square().mean())


def test_the_learning_rate() -> None:
    """Rises evenly over the warm-up, then stays, or falls by half a cosine to 0."""
    constant, cosine = (config(lr=0.1, steps=14, warmup=4, schedule=name) for name in ("constant", "cosine"))
    rising = [0.025, 0.05, 0.075, 0.1]
    assert [_rate(constant, step) for step in range(6)] == pytest.approx([*rising, 0.1, 0.1])
    assert [_rate(cosine, step) for step in (0, 1, 2, 3)] == pytest.approx(rising)
    assert [_rate(cosine, step) for step in (4, 9, 14)] == pytest.approx([0.1, 0.05, 0.0], abs=1e-12)
