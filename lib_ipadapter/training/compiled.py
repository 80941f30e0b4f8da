"""The frozen base's blocks, compiled by torch.compile: residual blocks and feed-forward parts, which hold no hooks.

Attention stays as it is, since the adapter's hooks are there. A block is compiled at its first call, which takes
minutes for a UNet; what is computed is the same but for rounding.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError

BLOCKS = ("ResBlock", "ResnetBlock2D", "FeedForward")  # ldm's, diffusers', both
Backend = str | Callable[..., Any]
_LIMIT = 1024  # graphs of one function: every block is one, and torch's limit of 8 would leave the others uncompiled


def lacking(device: torch.device) -> str:
    """What torch.compile lacks on this machine for this device; "" where it may work."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if not hasattr(torch, "compile"):
        return f"torch 2, and this is {torch.__version__}"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the Python package triton, which is not installed"
    if not any(shutil.which(name) for name in names if name):
        return "a C++ compiler (g++, clang++ or $CXX), and none is found"
    return ""


def compile_blocks(unet: nn.Module, device: torch.device, backend: Backend = "inductor") -> int:
    """Compiles the blocks of a frozen UNet, and returns how many. Raises TrainingError where the compiler is missing or
    fails on a trial."""
    if missing := lacking(device):
        raise TrainingError(f"compile: torch.compile needs {missing}. Install it, or leave compile off")
    _try(device, backend)
    _raise_limits()
    blocks = [module for module in unet.modules() if type(module).__name__ in BLOCKS]
    for module in blocks:
        # ldm's forward only chooses between checkpointing and this
        name = "_forward" if hasattr(module, "_forward") else "forward"
        setattr(module, name, torch.compile(getattr(module, name), backend=backend))
    return len(blocks)


def _try(device: torch.device, backend: Backend) -> None:
    """Compiles something small, forward and backward."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(_small, backend=backend)(x).sum().backward()
    except Exception as error:  # of dynamo, inductor, triton or the C++ compiler
        said = " ".join(str(error).split())[:300]
        raise TrainingError(
            f"compile: torch.compile does not work here ({type(error).__name__}: {said}). Mend the compiler, or leave "
            "compile off"
        ) from None


def _small(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) * 2


def _raise_limits() -> None:
    import torch._dynamo as dynamo

    settings: Any = dynamo.config
    for name in ("cache_size_limit", "accumulated_cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, max(_LIMIT, getattr(settings, name)))
