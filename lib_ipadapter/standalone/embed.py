"""``embed``: saves the features of references as embeds, which prompt without encoder and pictures."""

from __future__ import annotations

import argparse

from ..adapters.adapter import Adapter
from ..errors import FileError
from ..files.embeds import Encoded
from ..options import add_flags, from_flags
from ..pictures import images
from ..prompts import features
from ..prompts.references import expanded
from .generate import encoder_source, loaded, read_units
from .honoured import check_embed
from .options import EmbedOptions
from .shelf import PathShelf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_flags(parser, EmbedOptions)


def run(args: argparse.Namespace) -> int:
    """Writes --out and prints its name."""
    options = from_flags(EmbedOptions, args)
    if options.out.suffix != ".safetensors":
        raise FileError(options.out, "expected a name that ends in .safetensors")
    units = read_units(options)
    if len(units) != 1:
        raise FileError(
            options.out,
            f"holds the references of one unit, got {len(units)}; give one --adapter, or one --unit",
        )
    check_embed(units[0])
    source = encoder_source(units, options)  # first: it registers encoders that adapters name
    unit, adapter = expanded(units[0], PathShelf()), Adapter.load(units[0].model)
    pictures = loaded(unit)
    hashes = [p.hash if isinstance(p, Encoded) else images.content_hash(p) for p in pictures.images]
    name = options.out.stem
    features.embeds(name, unit, pictures, hashes, source, adapter.spec, options.title).save(options.out)
    print(options.out)
    return 0
