"""What the loss counts at each timestep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lib_ipadapter.training import objective
from lib_ipadapter.training.base import Text
from lib_ipadapter.training.objective import Draws

ALPHAS = torch.linspace(0.999, 0.005, 20)
TIMES = torch.tensor([0, 7, 13, 19])


def base(v: bool) -> SimpleNamespace:
    def text(captions: list[str]) -> Text:
        return Text(torch.zeros(len(captions), 1, 1))

    return SimpleNamespace(device=torch.device("cpu"), alphas=ALPHAS, v=v, text=text)


def loss(v: bool, weighting: str, times: Tensor = TIMES) -> tuple[Tensor, Tensor, Tensor]:
    """(the loss of a model that takes the latents for ``guess``, its squared errors of the latents [B], and of ε)."""
    torch.manual_seed(0)
    clean, noise, guess = torch.randn(3, len(times), 4, 3, 5)
    alpha = ALPHAS[times][:, None, None, None]

    def denoise(x: Tensor, t: Tensor, text: Text, sizes: None, features: Tensor) -> Tensor:
        of_noise = (x - alpha.sqrt() * guess) / (1 - alpha).sqrt()
        return alpha.sqrt() * of_noise - (1 - alpha).sqrt() * guess if v else of_noise

    kept = torch.zeros(len(times), dtype=torch.bool)
    draws = Draws(noise, torch.zeros_like(noise), times, kept, kept)
    moments = torch.cat([clean, torch.zeros_like(clean)], dim=1)
    nothing = torch.zeros(1, 2)
    found = objective.loss(
        base(v),
        denoise,
        moments,
        [""] * len(times),
        torch.zeros(len(times), 2),
        nothing,
        None,
        draws,
        weighting,
    )
    errors = (guess - clean).square().mean((1, 2, 3))
    return found, errors, errors * (alpha / (1 - alpha)).flatten()


@pytest.mark.parametrize("v", [False, True], ids=["noise", "v"])
@pytest.mark.parametrize("weighting", ["min-snr", "debiased"])
def test_an_error_of_the_latents_counts_the_same_whatever_is_predicted(v: bool, weighting: str):
    found, errors, _ = loss(v, weighting)
    snr = ALPHAS[TIMES] / (1 - ALPHAS[TIMES])
    counts = {"min-snr": snr.clamp(max=5), "debiased": snr**0.5}[weighting]
    torch.testing.assert_close(found, (counts * errors).mean(), rtol=1e-3, atol=1e-6)


def test_debiased_is_one_over_the_root_of_snr_for_the_noise():
    found, _, of_noise = loss(False, "debiased")
    snr = ALPHAS[TIMES] / (1 - ALPHAS[TIMES])
    torch.testing.assert_close(found, (of_noise / snr**0.5).mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("v", [False, True], ids=["noise", "v"])
def test_without_a_weighting_it_is_the_mean_squared_error(v: bool):
    found, errors, of_noise = loss(v, "none")
    wanted = errors / (1 - ALPHAS[TIMES]) if v else of_noise
    torch.testing.assert_close(found, wanted.mean(), rtol=1e-3, atol=1e-6)


def test_noise_without_a_signal_counts_nothing_for_v():
    """Zero terminal SNR."""
    zero = torch.zeros(1)
    assert [float(objective.weights_of(zero, True, name)) for name in ("min-snr", "debiased")] == [0, 0]
