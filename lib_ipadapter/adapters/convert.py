"""``convert``: any adapter file to safetensors in the standard layout. An image encoder that was trained along becomes
a file of its own beside it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from ..errors import FileError
from .aitoolkit import write_config
from .file import VARIANT, AdapterFile, open_adapter, save_adapter
from .variant import identify

DTYPES = ("float16", "bfloat16", "float32")


def convert(source: Path, target: Path, dtype: str | None = None, force: bool = False) -> None:
    """Writes ``source`` as ``target``, in its own dtype unless another is named; and, where the file brings an image
    encoder along, TARGET-encoder.safetensors and its config, which the adapter then names. Raises FileError."""
    if target.suffix != ".safetensors":
        raise FileError(target, "the output's name must end in .safetensors")
    if os.path.lexists(target) and not force:
        raise FileError(target, "exists already; pass --force to replace it")
    if not os.path.isdir(target.parent):
        raise FileError(target, f"the folder {target.parent} does not exist")
    file = open_adapter(source)
    spec = identify(file.shapes, source, known=file.known)
    tensors = file.tensors()
    if dtype:
        tensors = {key: _cast(source, key, tensor, dtype) for key, tensor in tensors.items()}
    told = {VARIANT: spec.kinds[0]} if len(spec.kinds) == 1 else {}  # its hash will not tell any more
    told |= _split_encoder(file, target, force)
    save_adapter(tensors, target, {**file.metadata, **told})


def _cast(source: Path, key: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """Raises FileError for weights that the dtype has no room for."""
    cast: torch.Tensor = tensor.to(getattr(torch, dtype))
    if bool((cast.isfinite() != tensor.float().isfinite()).any()):
        raise FileError(source, f"{key} has weights that {dtype} has no room for; take --dtype bfloat16 or float32")
    return cast


def _split_encoder(file: AdapterFile, target: Path, force: bool) -> dict[str, str]:
    """Writes the encoder that was trained along, if any; what the adapter's header says of it."""
    found = file.trained_encoder()
    if found is None:
        return {}
    spec, weights = found
    own = target.with_name(f"{target.stem}-encoder.safetensors")
    for path in (own, own.with_suffix(".json")):
        if os.path.lexists(path) and not force:
            raise FileError(path, "exists already; pass --force to replace it")
    save_adapter(weights, own)
    write_config(own.with_suffix(".json"), spec)
    return {"encoder": own.stem, "trained_with": "ai-toolkit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, help="default: as it is")
    parser.add_argument("--force", action="store_true", help="replace OUT")


def run(args: argparse.Namespace) -> int:
    """Converts one file."""
    convert(args.source, args.target, args.dtype, args.force)
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")
    encoder = open_adapter(args.target).encoder
    if encoder == f"{args.target.stem}-encoder":
        print(f"{args.target.with_name(encoder)}.safetensors: its image encoder; put it and the .json beside it into "
              "models/clip_vision")  # fmt: skip
    return 0
