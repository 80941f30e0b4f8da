"""Adapter files: bytes on disk to named tensors, safely; and back.

Keys are normalised to ``image_proj.*`` and ``ip_adapter.N.to_{k,v}_ip.weight``, whichever style the file
has: nested pickles of the original training, flat safetensors, ``adapter_modules.*`` and
``image_proj_model.*`` of accelerate training states (whose frozen ``unet.*`` is left out).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BrokenAdapter, FileError, UnsafeFile
from .variant import Shape

_MAX_HEADER = 100 << 20
_STYLES = {"image_proj_model.": "image_proj.", "adapter_modules.": "ip_adapter."}
# Bytes per element of every dtype that weights may have.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"} | {
    getattr(torch, attribute): name
    for attribute, name in (("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"))
    if hasattr(torch, attribute)
}


@dataclass(frozen=True)
class AdapterFile:
    """An opened file. ``shapes`` and ``dtypes`` by normalised key; ``metadata`` of a safetensors header."""

    path: Path
    format: str  # "safetensors" or "pickle"
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    _source: dict[str, str] = field(repr=False)  # normalised key to the file's own
    _held: dict[str, Tensor] = field(repr=False)  # a pickle's tensors, by the file's own key

    @property
    def encoder(self) -> str:
        """The image encoder that our trainer wrote into the header; "" in files of others."""
        return self.metadata.get("encoder", "") if "trained_with" in self.metadata else ""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by normalised key, in the file's dtype; of a safetensors file mapped, not read."""
        if self.format == "pickle":
            return {key: self._held[own] for key, own in self._source.items()}
        import safetensors

        opened: Any = safetensors.safe_open
        try:
            with opened(str(self.path), framework="pt", device="cpu") as file:
                return {key: file.get_tensor(own) for key, own in self._source.items()}
        except (safetensors.SafetensorError, OSError) as error:  # type: ignore[attr-defined]
            raise UnsafeFile(self.path, f"the tensors cannot be read ({error}); download it again") from None


def open_adapter(path: Path | str) -> AdapterFile:
    """Opens a file by its content, not by its extension. Raises UnsafeFile or BrokenAdapter."""
    path = Path(path)
    head = _head(path)
    # A safetensors file begins with its header's length, whose first byte may look like a pickle's.
    if head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return _open_pickle(path)
    return open_safetensors(path)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except IsADirectoryError:
        raise UnsafeFile(path, "this is a folder, expected a file with tensors") from None
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from None
    start = head.lstrip().lower()
    if not head:
        raise UnsafeFile(path, "the file is empty; download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsafeFile(
            path, "this is a web page, not a model: the download went wrong; download the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UnsafeFile(
            path, "this is a Git LFS pointer, not the model itself; run git lfs pull or download it"
        )
    return head


def open_safetensors(path: Path) -> AdapterFile:
    """Opens a safetensors file, and nothing else. Raises UnsafeFile."""
    header = _header(path)
    metadata = header.pop("__metadata__", {})
    source = _normalised(header)
    return AdapterFile(
        path=path,
        format="safetensors",
        shapes={key: tuple(header[own]["shape"]) for key, own in source.items()},
        dtypes=_checked_floats(path, {key: header[own]["dtype"] for key, own in source.items()}),
        metadata={str(k): str(v) for k, v in metadata.items()},
        _source=source,
        _held={},
    )


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, its length checked against the file's."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(_MAX_HEADER, size - 8):
            raise UnsafeFile(path, "neither a safetensors file nor a pickle, or cut off; download it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((_entry_end(entry) for k, entry in header.items() if k != "__metadata__"), default=0)
            dict(header.get("__metadata__", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UnsafeFile(path, "neither a safetensors file nor a pickle; download it again") from None
    if size != 8 + length + end:
        raise UnsafeFile(
            path, f"the file has {size} bytes, its header says {8 + length + end}; download it again"
        )
    return header


def _entry_end(entry: Any) -> int:
    """Where a tensor's bytes end. Raises KeyError, TypeError or ValueError for an entry that is none."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape, dtype = entry["shape"], entry["dtype"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("shape")
    size = _BYTES.get(dtype)
    if size and end - begin != size * math.prod(shape):
        raise ValueError("data_offsets")
    return end


def _open_pickle(path: Path) -> AdapterFile:
    held = dict(_flatten(_load_pickle(path)))
    source = _normalised(held)
    dtypes = {key: _NAMES.get(held[own].dtype, str(held[own].dtype)) for key, own in source.items()}
    return AdapterFile(
        path=path,
        format="pickle",
        shapes={key: tuple(held[own].shape) for key, own in source.items()},
        dtypes=_checked_floats(path, dtypes),
        metadata={},
        _source=source,
        _held=held,
    )


def _load_pickle(path: Path) -> Any:
    """The content of a pickle that holds tensors and containers only; anything else is refused unread."""
    options: dict[str, Any] = {"mmap": True} if _head(path).startswith(b"PK") else {}
    try:
        # In the WebUI torch.load is wrapped: it prints its own refusal and returns None.
        content = torch.load(str(path), map_location="cpu", weights_only=True, **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UnsafeFile(
            path, f"refused: the pickle is damaged or carries code ({reason}). Use a .safetensors file from a source "
            "that you trust",
        ) from None  # fmt: skip
    if not isinstance(content, Mapping):
        raise UnsafeFile(path, "refused: the pickle holds no dictionary of tensors. Use a .safetensors file")
    return content


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")


def _normalised(keys: Mapping[str, Any]) -> dict[str, str]:
    """Normalised key to the file's own key."""
    own = list(keys)
    prefix = "module." if own and all(key.startswith("module.") for key in own) else ""
    renamed = {_rename(key[len(prefix) :]): key for key in own}
    if any(key.startswith(tuple(_STYLES.values())) for key in renamed):
        return {key: source for key, source in renamed.items() if not key.startswith("unet.")}
    return renamed


def _rename(key: str) -> str:
    for style, standard in _STYLES.items():
        if key.startswith(style):
            return standard + key[len(style) :]
    return key


def _checked_floats(path: Path, dtypes: dict[str, str]) -> dict[str, str]:
    adapter = [k for k in dtypes if k.startswith(tuple(_STYLES.values()))]
    wrong = [f"{key} is {dtypes[key]}" for key in adapter if dtypes[key] not in _BYTES]
    if wrong:
        raise BrokenAdapter(path, f"weights must be floating point, but {', '.join(wrong[:6])}")
    return dtypes


def sha256(path: Path | str) -> str:
    """Hex digest of the whole file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_adapter(
    tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file with normalised keys; never a partial file under the final name. The same tensors and
    metadata make the same bytes, so that a hash says whether a training was repeated exactly. Raises FileError."""
    import safetensors
    from safetensors.torch import save_file

    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    try:
        save_file(own, str(part), {"format": "pt", **(metadata or {})})
        _sort_metadata(part)
        os.replace(part, path)
    except (OSError, safetensors.SafetensorError) as error:  # type: ignore[attr-defined]
        raise FileError(path, f"cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _sort_metadata(path: Path) -> None:
    """safetensors writes the metadata in an order of chance; sorted in place, they keep the header's length."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= length:  # whatever characters either writer escapes
            file.seek(8)
            file.write(content.ljust(length))
