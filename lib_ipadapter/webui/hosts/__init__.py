"""The programs that the extension can run in. One is chosen at start."""

from __future__ import annotations

from .a1111 import A1111
from .base import Host

__all__ = ["Host", "choose"]


def choose() -> Host:
    """The host of this process."""
    return A1111()
