"""Regions and weight types on held-out references: python -m examples.small_world.fine PART DATA-held-out

regions: two references side by side in one picture of twice the width, each with a mask of its half. How often what is
drawn in a half shows the attributes of its own reference, and how often those of the other half's.
types: image prompt alone with some weight types. How often each attribute is the reference's: colour and texture are
its style here; shape, size and place its composition.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from lib_ipadapter.adapter import Adapter
from lib_ipadapter.encoders import EncoderSource, register_configs
from lib_ipadapter.evaluation.items import Item, read_items
from lib_ipadapter.masks import Region
from lib_ipadapter.prepare import Pictures, prepare
from lib_ipadapter.session import ImagePrompt
from lib_ipadapter.standalone import Standalone
from lib_ipadapter.unit import Unit

from . import data, models
from .read import read

ATTRIBUTES = ("colour", "texture", "shape", "size", "place")
TYPES = (
    "linear", "style transfer", "strong style transfer", "style transfer precise", "composition",
    "composition precise",
)  # fmt: skip
CFG = 4.0


class Drawer:
    """The small world's models, and what an adapter draws with them."""

    def __init__(self, weights: Path, adapter: str, steps: int) -> None:
        self.host = Standalone.load(weights / models.CHECKPOINT.name, weights / models.CHECKPOINT_CONFIG.name)
        register_configs([weights])
        self.adapter, self.source, self.steps = (
            Adapter.load(weights / adapter),
            EncoderSource([weights]),
            steps,
        )

    def prompt(self, reference: Image.Image, region: Region | None = None, **fields: object) -> ImagePrompt:
        unit = Unit.parse({"model": "adapter", "images": [reference], **fields})
        return prepare(unit, Pictures([reference]), self.adapter, self.source, region)

    def draw(self, prompts: Sequence[ImagePrompt], seed: int, columns: int = 1) -> Image.Image:
        size = (columns * data.SIDE, data.SIDE)
        return self.host.generate("", prompts=prompts, steps=self.steps, cfg=CFG, seed=seed, size=size)[0]


def halves(drawer: Drawer, left: Image.Image, right: Image.Image, seed: int) -> list[Image.Image]:
    """What is drawn in the left and in the right half, where each reference has a mask of its half."""
    mask = torch.zeros(1, 2)
    mask[0, 0] = 1
    prompts = [drawer.prompt(left, Region(mask)), drawer.prompt(right, Region(1 - mask))]
    picture, side = drawer.draw(prompts, seed, columns=2), data.SIDE
    return [picture.crop((x, 0, x + side, side)) for x in (0, side)]


def regions(drawer: Drawer, items: Sequence[Item]) -> list[list[str]]:
    """Rows of a table: attribute, share of halves that show their own reference's, and the other's. Pairs whose
    references share an attribute do not count for it."""
    own, other, count = (dict.fromkeys(ATTRIBUTES[:4], 0) for _ in range(3))
    for seed, pair in enumerate(zip(items[::2], items[1::2])):
        drawn = halves(drawer, pair[0].load(), pair[1].load(), seed)
        for index, half in enumerate(drawn):
            seen = read(half)
            for name in own:
                mine, theirs = pair[index].fields[name], pair[1 - index].fields[name]
                if mine != theirs:
                    count[name] += 1
                    own[name] += getattr(seen, name) == mine
                    other[name] += getattr(seen, name) == theirs
    return [
        [name, _share(own[name], count[name]), _share(other[name], count[name]), str(count[name])]
        for name in own
    ]


def types(drawer: Drawer, items: Sequence[Item], kinds: Iterable[str] = TYPES) -> list[list[str]]:
    """Rows of a table: weight type, share of pictures with the reference's attribute for each of ATTRIBUTES; the
    first is the base's."""
    rows = []
    for kind in ("without", *kinds):
        agreed = dict.fromkeys(ATTRIBUTES, 0)
        for seed, item in enumerate(items):
            prompts = [] if kind == "without" else [drawer.prompt(item.load(), weight_type=kind)]
            seen = read(drawer.draw(prompts, seed))
            for name in ATTRIBUTES:
                agreed[name] += getattr(seen, name) == item.fields[name]
        rows.append([kind, *(_share(agreed[name], len(items)) for name in ATTRIBUTES)])
    return rows


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.fine", description=__doc__)
    parser.add_argument("part", choices=("regions", "types"))
    parser.add_argument("references", type=Path, help="folder that export.py wrote")
    parser.add_argument("--weights", type=Path, default=models.WEIGHTS, help="folder of the models")
    parser.add_argument("--adapter", default=models.BASE_ADAPTER.name, help="file in that folder")
    parser.add_argument("--limit", type=int, default=60, help="references, of all")
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args(argv)
    drawer, items = (
        Drawer(args.weights, args.adapter, args.steps),
        read_items(args.references, limit=args.limit),
    )
    if args.part == "regions":
        print(markdown(("attribute", "its own", "the other's", "halves"), regions(drawer, items)))
    else:
        print(markdown(("weight type", *ATTRIBUTES), types(drawer, items)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
