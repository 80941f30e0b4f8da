"""The loss on pictures that are not learned from, at fixed timesteps and with fixed noise.

So two trainings, and two steps of one, are compared on the same sums. Pictures are seen as without augmentation, with
their caption and their reference, and nothing is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError
from .base import Base, Sizes, Text
from .config import TrainConfig
from .data import Preparation, draws
from .encoding import Encoding
from .objective import Denoiser, Draws, loss
from .source import BrokenPicture
from .sources import open_source

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of all timesteps: from details to the whole
_SEED = 20_230_813


@dataclass(frozen=True)
class _Held:
    """A picture that is held out, encoded."""

    moments: Tensor
    features: Tensor
    sizes: Tensor
    text: Text


class Validation:
    """Encodes the pictures once. Raises DataError."""

    def __init__(self, config: TrainConfig, base: Base, encoding: Encoding, prepare: Preparation) -> None:
        self.base, self.nothing = base, encoding.nothing
        source = open_source(config.validation)
        self.held: list[_Held] = []
        for index in range(len(source)):
            if len(self.held) == config.validation_count:
                break
            try:
                tensors = prepare(source.load(index))
            except BrokenPicture:
                continue
            self.held.append(
                _Held(
                    base.moments(tensors["pixels"][None]), encoding.features(tensors["reference"][None]),
                    tensors["sizes"][None], base.text([source.caption(index)]),
                )
            )  # fmt: skip
        if not self.held:
            raise DataError(config.validation, "not one picture of validation can be read; give others")

    @torch.no_grad()
    def loss(self, denoiser: Denoiser) -> float:
        """The mean over pictures and timesteps, in the training's own measure without a weighting."""
        found: list[float] = []
        for number, one in enumerate(self.held):
            for place, share in enumerate(TIMES):
                found.append(self._loss(denoiser, one, number * len(TIMES) + place, share))
        denoiser.rest()
        return sum(found) / len(found)

    def _loss(self, denoiser: Denoiser, one: _Held, number: int, share: float) -> float:
        generator = draws(_SEED, number)
        shape = (1, one.moments.shape[1] // 2, *one.moments.shape[2:])
        times = torch.tensor([round(share * (len(self.base.alphas) - 1))])
        kept = torch.zeros(1, dtype=torch.bool)
        fixed = Draws(torch.randn(shape, generator=generator), torch.zeros(shape), times, kept, kept)
        sizes = Sizes(one.sizes) if self.base.sdxl else None
        cached = (one.text, one.text)
        value = loss(self.base, denoiser, one.moments, [""], one.features, self.nothing, sizes, fixed, "none", cached)
        return float(value)
