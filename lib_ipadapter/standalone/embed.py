"""``embed``: saves the features of references as embeds, which prompt without encoder and pictures."""

from __future__ import annotations

import argparse

from ..adapters.adapter import Adapter
from ..errors import FileError
from ..options import add_flags, from_flags
from ..pictures.picture import Pictures
from ..prompts.pipeline import Pipeline
from ..prompts.resolve import resolve
from .generate import encoder_source, face_analyser, read_units
from .honoured import check_embed
from .options import EmbedOptions
from .store import PathStore


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
    pipeline = Pipeline(encoder_source(units, options), faces=face_analyser(options))
    resolved = resolve(units[0], PathStore(), Pictures())
    spec = Adapter.load(units[0].model).spec.as_kind(units[0].kind)
    pipeline.embeds(options.out.stem, resolved, spec, options.title).save(options.out)
    print(options.out)
    return 0
