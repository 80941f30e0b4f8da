"""Weight files of encoders: shapes without reading tensors, tensors one by one, safely."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..errors import BrokenEncoder, EncoderMissing, UnsafeFile
from .layout import Read, Shape

_safe_open: Any = safetensors.safe_open
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Shape], Read]]:
    """(shapes by key, reader of one tensor) of a weight file; tensors stay on the disk until read.

    Raises EncoderMissing (no such file), BrokenEncoder (not readable as weights), UnsafeFile (a pickle
    that carries code).
    """
    if not path.is_file():
        raise EncoderMissing(f"{path.name}: no such file in {path.parent}; choose another encoder file")
    if path.suffix.lower() == ".safetensors":
        with _opened_safetensors(path) as content:
            yield content
    else:
        tensors = _load_pickle(path)
        yield {key: tuple(tensor.shape) for key, tensor in tensors.items()}, tensors.__getitem__


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[tuple[dict[str, Shape], Read]]:
    try:
        handle = _safe_open(str(path), framework="pt", device="cpu")
    except Exception as error:  # SafetensorError, which its type stubs do not have, and OSError
        raise BrokenEncoder(
            f"{path.name}: not a readable safetensors file ({error}); is it cut short? Download it again"
        ) from error
    with handle as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        yield shapes, file.get_tensor


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, memory-mapped where its format allows."""
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and not _begins_as_pickle(path):
        raise BrokenEncoder(
            f"{path.name}: not a readable weight file (neither a zip archive nor a pickle); is it cut short? "
            "Download it again"
        )
    if is_zip and _is_script(path):
        raise BrokenEncoder(
            f"{path.name}: a TorchScript archive, as OpenAI published CLIP: it holds a program, not only "
            "weights. Use the Hugging Face file of the same model (safetensors)"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch warns of its own reader
            # torch.serialization.load, because hosts replace torch.load by loaders that allow more
            content = torch.serialization.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise UnsafeFile(
            path, f"refused: a pickle that is not only tensors ({_first_line(error)}); use a safetensors file"
        ) from error
    except Exception as error:  # torch raises all kinds on files that are no checkpoints
        raise BrokenEncoder(
            f"{path.name}: not a readable weight file ({_first_line(error)}); is it cut short? Download it "
            "again"
        ) from error
    return dict(_tensors(content))


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def _is_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _tensors(content: Any, prefix: str = "", depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts, under dotted keys."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}.", depth - 1)
