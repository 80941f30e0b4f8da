"""The programs that the extension can run in. One is chosen at start."""

from __future__ import annotations

import importlib.util

from .base import Host

__all__ = ["Host", "choose"]


def choose() -> Host:
    """The host of this process: Forge and its forks have a package of their own, modules_forge."""
    if importlib.util.find_spec("modules_forge") is not None:
        from .forge import Forge

        return Forge()
    from .a1111 import A1111

    return A1111()
