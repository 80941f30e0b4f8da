"""Optimizers by name. All but AdamW come with a package of their own, which is asked for only where it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .config import TrainConfig

# Name: (module, class, what pip installs)
PACKAGES = {
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "schedule-free": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
}


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Raises TrainingError when its package is missing."""
    own: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **own)
    module, name, package = PACKAGES[config.optimizer]
    try:
        kind: Any = getattr(import_module(module), name)
    except (ImportError, RuntimeError, AttributeError) as error:  # bitsandbytes raises several where CUDA is missing
        raise TrainingError(
            f"optimizer {config.optimizer}: {package} cannot be used ({' '.join(str(error).split())[:160]}); run: pip "
            f"install {package}, or choose optimizer adamw"
        ) from None
    if config.optimizer == "prodigy":
        # As its authors advise for diffusion models.
        own |= {"use_bias_correction": True, "safeguard_warmup": True}
    optimizer: torch.optim.Optimizer = kind(parameters, **own)
    return optimizer


def inner(optimizer: Any) -> Any:
    """The optimizer itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def learning(optimizer: Any) -> None:
    """Before steps: schedule-free has weights to learn with and others to use."""
    own = inner(optimizer)
    if hasattr(own, "train"):
        own.train()


@contextmanager
def in_use(optimizer: Any, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The weights as they are to be used: of schedule-free the average; the others have one kind. What is learned with
    is put back bit for bit, so that looking changes nothing."""
    own = inner(optimizer)
    if not hasattr(own, "eval"):
        yield
        return
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters]
    own.eval()
    try:
        yield
    finally:
        own.train()
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
