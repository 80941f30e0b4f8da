"""What the benchmarks of training use in the place of a base model: a UNet and nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_ipadapter.training.base import Base


class Bare(Base):
    """Without autoencoder and text encoder; ``_call`` is the benchmark's."""

    def _moments(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    decode = _text = _moments

    def besides(self) -> dict[str, Any]:
        """No model."""
        return {}

    def checkpoint_gradients(self) -> None:
        """Not here."""
        raise NotImplementedError
