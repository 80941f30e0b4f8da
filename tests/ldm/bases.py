"""A checkpoint of the tests is read and built once; who opens it again gets its own modules over the same numbers."""

from __future__ import annotations

import copy
import functools
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_ipadapter.standalone import checkpoint
from lib_ipadapter.standalone.model import Parts

HELD = 4
USERS = ("lib_ipadapter.standalone.checkpoint", "lib_ipadapter.standalone.host")
_real = checkpoint.load_parts
_held: dict[tuple[Any, ...], tuple[Parts, list[int]]] = {}


@functools.wraps(_real)
def load_parts(path: Any, config: Any, device: Any, dtype: Any, prediction: str = "auto") -> Parts:
    """load_parts, of files that did not change since they were read."""
    key = (_stamp(path), _stamp(config), str(device), dtype, prediction)
    if key[0] is None:
        return _real(path, config, device, dtype, prediction)
    if key not in _held:
        while len(_held) >= HELD:
            del _held[next(iter(_held))]
        parts = _real(path, config, device, dtype, prediction)
        _held[key] = parts, _versions(parts)
    parts, versions = _held[key]
    assert _versions(parts) == versions, "someone wrote into the base's own numbers"
    return _apart(parts)


def install(put: Any) -> None:
    """``put(module, name, value)``, as setattr does, where load_parts is looked up."""
    for name in USERS:
        put(importlib.import_module(name), "load_parts", load_parts)


def _stamp(path: Any) -> tuple[Any, ...] | None:
    """What tells a file from another: its copies, which keep its time, are the same file."""
    path = Path(path)
    if not path.is_file():
        return None
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns, path.read_bytes() if stat.st_size < 1 << 16 else b""


def _modules(parts: Parts) -> tuple[nn.Module, ...]:
    return parts.unet, parts.autoencoder, parts.text


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _versions(parts: Parts) -> list[int]:
    """A count for each tensor that grows where it, or one that shares its memory, is written to."""
    return [tensor._version for module in _modules(parts) for tensor in _tensors(module)]


def _apart(parts: Parts) -> Parts:
    memo: dict[int, Any] = {}
    for module in _modules(parts):
        for tensor in _tensors(module):
            shared = tensor.detach()
            own = nn.Parameter(shared, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = own if isinstance(tensor, nn.Parameter) else shared
    return Parts(parts.config, *(copy.deepcopy(module, memo) for module in _modules(parts)))
