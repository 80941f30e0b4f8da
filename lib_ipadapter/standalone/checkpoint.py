"""A checkpoint file to its parts: SD1.x and SD2.x by their yaml, SDXL by its own tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from pathlib import Path

import torch

from ..errors import UnsupportedModel
from ..files.disk import read_head
from . import sdxl
from .config import Config, read_config
from .model import Parts, load_ldm, require_ldm, state_of
from .options import PREDICTIONS


def load_parts(
    checkpoint: Path | str, config: Path | str, device: torch.device, dtype: torch.dtype, prediction: str = "auto"
) -> Parts:
    """config: the yaml, which SDXL does not need; prediction: what the UNet predicts, where the file does not say so
    itself. Raises FileError (either file), ModelError (they do not belong together, ldm is absent)."""
    checkpoint, config = Path(checkpoint), Path(config)
    if not os.path.isfile(checkpoint):
        read_head(checkpoint)  # says so before ldm is asked for
    with contextlib.redirect_stdout(io.StringIO()):  # ldm prints as it is imported and built
        require_ldm()
        state = state_of(checkpoint)
        if sdxl.is_sdxl(state):
            return sdxl.load(state, config, device, dtype, lambda own: predicting(own, prediction))
        return load_ldm(state, predicting(read_config(config), prediction), device, dtype)


def predicting(config: Config, prediction: str) -> Config:
    """The config with another prediction. Raises UnsupportedModel for one that is not known."""
    if prediction not in PREDICTIONS:
        raise UnsupportedModel(f"prediction: got {prediction!r}, expected one of {', '.join(PREDICTIONS)}")
    if prediction == "auto":
        return config
    kind = "eps" if prediction == "epsilon" else "v"
    return dataclasses.replace(config, parameterization=kind, zero_snr=prediction == "v-zero-snr")
