"""Measures the small world's adapters on held-out references: python -m examples.small_world.measure PART DATA-held-out

Two parts, a table each, by ``lib_ipadapter.evaluation``, with attributes read from the pixels as further columns:
alone: image prompt alone over λ, next to the text that fully describes the reference;
contradiction: with a text prompt that names another colour, shape or texture: how often each side has its way.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lib_ipadapter.cli import ended
from lib_ipadapter.evaluation import Options, evaluate
from lib_ipadapter.evaluation.items import Item, read_items
from lib_ipadapter.evaluation.methods import BaseModel, Encoders, Method, Studio, TextBaseline, adapter_method
from lib_ipadapter.evaluation.metric import Clip

from . import data, models
from .read import read

READ = ("colour", "shape", "texture")


def agrees(attribute: str, picture: Image.Image, item: Item) -> float:
    """1 if the attribute read from the sample is the reference's."""
    return float(getattr(read(picture), attribute) == item.fields[attribute])


def image_wins(picture: Image.Image, item: Item) -> float:
    """1 if the attribute that the text contradicts is still the reference's."""
    return agrees(item.fields["contradicts"], picture, item)


def text_wins(picture: Image.Image, item: Item) -> float:
    """1 if it is the text's."""
    return float(getattr(read(picture), item.fields["contradicts"]) == item.fields["wanted"])


def others_kept(picture: Image.Image, item: Item) -> float:
    """Fraction of the attributes not named by the text that are the reference's."""
    names = [name for name in READ if name != item.fields["contradicts"]]
    return math.fsum(agrees(name, picture, item) for name in names) / len(names)


def measure(part: str, references: Path, out: Path, weights: Path, lambdas: Sequence[float], limit: int | None,
            steps: int, batch: int) -> str:  # fmt: skip
    """Writes OUT/PART and returns its Markdown table."""
    items = read_items(references, limit=limit)
    studio = Studio.load(
        weights / models.CHECKPOINT.name, weights / models.CHECKPOINT_CONFIG.name, steps=steps, cfg=4.0,
        size=(data.SIDE, data.SIDE),
    )  # fmt: skip
    clip_file = weights / models.CLIP_FILE.name
    base, encoders, metric = BaseModel(studio), Encoders([clip_file]), Clip.load(clip_file)
    files = {"base": models.BASE_ADAPTER, "plus": models.PLUS_ADAPTER, "concat": models.CONCAT_ADAPTER}
    methods: list[Method] = [adapter_method(name, weights / path.name, base, encoders) for name, path in files.items()]
    if part == "alone":
        methods.append(TextBaseline(studio, "full"))
        prompt = "none"
        extra = {name: (lambda picture, item, name=name: agrees(name, picture, item)) for name in READ}
    else:
        prompt = "{contradiction}"
        extra = {"image wins": image_wins, "text wins": text_wins, "others kept": others_kept}
    options = Options(weights=tuple(lambdas), batch=batch, prompt=prompt)
    return evaluate(items, methods, metric, out / part, options, extra=extra).markdown()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.measure", description=__doc__)
    parser.add_argument("part", choices=("alone", "contradiction"))
    parser.add_argument("references", type=Path, help="folder that export.py wrote")
    parser.add_argument("--out", type=Path, default=models.HERE / "run" / "measured")
    parser.add_argument("--weights", type=Path, default=models.WEIGHTS, help="folder of the models")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--limit", type=int, help="references, of all")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(argv)
    return ended(lambda: print(measure(**vars(args))))


if __name__ == "__main__":
    raise SystemExit(main())
