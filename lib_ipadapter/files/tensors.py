"""Files of tensors, from disk and back, whoever made them: the one reader of adapters, encoders, checkpoints and
states.

A safetensors file is read by its library, a pickle by pickles.py. Nothing in a file is ever run, no other file is
opened, and memory stays small.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic import replacing
from ..errors import FileError, UnsafeFile
from .disk import open_regular, read_head
from .pickles import named, unpickled
from .unpickler import PickleRefused, StoredTensor

Shape = tuple[int, ...]

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
MAX_HEADER = 16 << 20  # bytes of a safetensors header
_MAX_LEVELS = 50  # of nested containers
_SLACK = 2 << 30  # bytes that tensors which share their numbers may have beyond twice the file
_TAR = b"ustar"  # at byte 257
# Names of dtypes as safetensors has them
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
} | {
    getattr(torch, attribute): name
    for attribute, name in (("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"))
    if hasattr(torch, attribute)
}  # fmt: skip
_open_safetensors: Any = safe_open


@dataclass(frozen=True)
class TensorFile:
    """An opened file. Shapes and dtypes (F32, BF16, ...) by name; ``metadata`` is that of a safetensors header."""

    path: Path
    format: str  # "safetensors" or "pickle"
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    _read: Callable[[list[str]], dict[str, Tensor]] = field(repr=False)

    def tensors(self, names: list[str] | None = None) -> dict[str, Tensor]:
        """The named tensors, or all, in the file's dtype, mapped and on the CPU. Raises UnsafeFile."""
        return self._read(list(self.shapes) if names is None else names)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own. Raises KeyError for a name that the file does not have, UnsafeFile."""
        return self._read([name])[name].clone()


def open_tensors(path: Path | str) -> TensorFile:
    """Opens a file by its content, not by its extension. Raises FileError; UnsafeFile says why it is refused."""
    path = Path(path)
    head = read_head(path)
    # A safetensors file begins with its header's length, whose first bytes may look like anything.
    if head[8:9] == b"{":
        return open_safetensors(path)
    if head[257:262] == _TAR:
        raise UnsafeFile(path, "a tar archive, as torch wrote before 0.2; save it again with a later torch")
    if head.startswith((b"PK", b"\x80")):
        return _open_pickle(path)
    raise UnsafeFile(path, "neither a safetensors file nor a pickle of torch, or damaged; download it again")


def open_safetensors(path: Path) -> TensorFile:
    """Opens a safetensors file, and nothing else. Raises FileError."""
    _check_header_length(path)
    with _reading(path), _open_safetensors(str(path), framework="pt", device="cpu") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return TensorFile(
            path=path,
            format="safetensors",
            shapes={name: tuple(found.get_shape()) for name, found in slices.items()},
            dtypes={name: str(found.get_dtype()) for name, found in slices.items()},
            metadata=dict(file.metadata() or {}),
            _read=lambda names: _read_safetensors(path, names),
        )


def _check_header_length(path: Path) -> None:
    with open_regular(path) as file:
        start, size = file.read(8), os.fstat(file.fileno()).st_size
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8:
        raise UnsafeFile(path, "neither a safetensors file nor a pickle, or cut off; download it again")
    if length > MAX_HEADER:
        raise UnsafeFile(path, f"its header has {length >> 20} MB, more than {MAX_HEADER >> 20}; download it again")


def _read_safetensors(path: Path, names: list[str]) -> dict[str, Tensor]:
    open_regular(path).close()  # it may have been replaced since
    with _reading(path), _open_safetensors(str(path), framework="pt", device="cpu") as file:
        known = set(file.keys())
        for name in names:
            if name not in known:
                raise KeyError(name)
        return {name: file.get_tensor(name) for name in names}


@contextlib.contextmanager
def _reading(path: Path) -> Any:
    try:
        yield
    except (FileError, KeyError):
        raise
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # SafetensorError, which its type stubs lack, and what old versions raise
        reason = " ".join(str(error).split())[:200]
        if "incomplete" in reason.lower() or "InvalidOffset" in reason:
            reason = f"cut off, or it has bytes that its header does not know: {reason}"
        raise UnsafeFile(path, f"not a valid safetensors file ({reason}); download it again") from None


def _open_pickle(path: Path) -> TensorFile:
    data, content = _unpickle(path)
    stored = _refusing(path, lambda: named(_dictionary(content)))
    return TensorFile(
        path=path,
        format="pickle",
        shapes={name: tensor.shape for name, tensor in stored.items()},
        dtypes={name: _NAMES.get(tensor.dtype, str(tensor.dtype)) for name, tensor in stored.items()},
        metadata={},
        _read=lambda names: _refusing(
            path, lambda: dict(zip(names, _read_stored([stored[name] for name in names], data), strict=True))
        ),
    )


def _dictionary(content: Any) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise PickleRefused("it holds no dictionary of tensors")
    return content


def _read_stored(stored: list[StoredTensor], data: mmap.mmap) -> list[Tensor]:
    """Views of one storage, expanded ones too, would make a small file a huge adapter; a little of it is common."""
    total = sum(tensor.bytes for tensor in stored)
    if total > 2 * len(data) + _SLACK:
        raise PickleRefused(f"its tensors have {total / 1e6:.0f} MB, and the file only {len(data) / 1e6:.1f} MB")
    return [tensor.read(data) for tensor in stored]


def _unpickle(path: Path, inert: frozenset[str] = frozenset()) -> tuple[mmap.mmap, Any]:
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names, torch of its own types
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, OverflowError) as error:
            raise FileError(path, f"cannot be mapped into memory: {error}") from None
        return data, _refusing(path, lambda: unpickled(file, data, inert))


def _refusing(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except PickleRefused as reason:
        raise UnsafeFile(path, f"refused: {reason}. Use a .safetensors file from a source that you trust") from None


# What accelerate's random_states_N.pkl names beside tensors: the states of Python's and numpy's generators
_NUMPY = frozenset(
    {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
    | {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}
)


def check_states(folder: Path) -> None:
    """Refuses a folder of accelerate's in which a pickle names more than tensors and numpy arrays, as accelerate itself
    unpickles all that it finds there. Raises FileError."""
    for path in sorted(folder.iterdir()):
        if path.suffix != ".safetensors" and read_head(path).startswith((b"PK", b"\x80")):
            _unpickle(path, _NUMPY)


def load_state(path: Path) -> Any:
    """The object in a file of ``torch.save``, tensors read: containers, numbers and text only. Raises FileError."""
    data, content = _unpickle(Path(path))
    return _refusing(Path(path), lambda: _filled(content, data, {}, 0))


def _filled(content: Any, data: mmap.mmap, done: dict[int, Any], depth: int) -> Any:
    """``content`` with its tensors read; ``done`` has by id what was met before."""
    if depth > _MAX_LEVELS:
        raise PickleRefused(f"it is nested more than {_MAX_LEVELS} levels deep")
    if id(content) not in done:
        done[id(content)] = _read_in(content, data, done, depth + 1)
    return done[id(content)]


def _read_in(content: Any, data: mmap.mmap, done: dict[int, Any], depth: int) -> Any:
    if isinstance(content, StoredTensor):
        return _read_stored([content], data)[0]
    if isinstance(content, dict):
        return {key: _filled(value, data, done, depth) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_filled(value, data, done, depth) for value in content)
    return content


# writing


def save_tensors(tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all. The same tensors and metadata make the same bytes, so that a hash
    says whether a training was repeated exactly. Raises FileError."""
    from safetensors.torch import save_file

    path = Path(path)
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with replacing(path) as part:
        try:
            save_file(own, str(part), {"format": "pt", **(metadata or {})})
        except OSError:
            raise
        except Exception as error:  # SafetensorError, which its type stubs lack: a full disk, too
            raise FileError(path, f"cannot be written in {path.parent}: {error}") from None
        _sort_metadata(part)


def _sort_metadata(path: Path) -> None:
    """safetensors writes the metadata in a random order; sorted in place, they keep the header's length."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= length:  # whatever characters either writer escapes
            file.seek(8)
            file.write(content.ljust(length))
