"""``embed``: saves the features of references as embeds, which prompt without encoder and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..adapters.adapter import Adapter
from ..errors import FileError
from ..files.embeds import Encoded
from ..pictures import images
from ..prompts import features
from ..prompts.references import expanded
from .generate import add_unit_arguments, encoder_source, loaded, read_units
from .honoured import check_embed
from .shelf import PathShelf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_unit_arguments(parser)
    parser.add_argument("--title", default="", help="what the list shows; default: the file's name")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file")


def run(args: argparse.Namespace) -> int:
    """Writes --out and says so."""
    if args.out.suffix != ".safetensors":
        raise FileError(args.out, "expected a name that ends in .safetensors")
    units = read_units(args)
    if len(units) != 1:
        raise FileError(
            args.out, f"holds the references of one unit, got {len(units)}; give one --adapter, or one --unit"
        )
    check_embed(units[0])
    source = encoder_source(units, args)  # first: it registers encoders that adapters name
    unit, adapter = expanded(units[0], PathShelf()), Adapter.load(units[0].model)
    pictures = loaded(unit)
    hashes = [p.hash if isinstance(p, Encoded) else images.content_hash(p) for p in pictures.images]
    name = args.out.stem
    features.embeds(name, unit, pictures, hashes, source, adapter.spec, args.title).save(args.out)
    print(args.out)
    return 0
