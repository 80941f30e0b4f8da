"""Autocast off, on every device type that has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

DEVICES = ("cuda", "cpu", "xpu")  # torch refuses autocast's context on others


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """The dtypes of the tensors alone decide, whatever the host has switched on."""
    if device.type not in DEVICES:
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
