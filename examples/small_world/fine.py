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

from lib_ipadapter.attention.region import Region
from lib_ipadapter.cli import ended
from lib_ipadapter.evaluation.items import Item, read_items

from . import data, models
from .drawer import Drawer
from .read import read

ATTRIBUTES = ("colour", "texture", "shape", "size", "place")
TYPES = (
    "linear", "style transfer", "strong style transfer", "style transfer precise", "composition",
    "composition precise",
)  # fmt: skip


def halves(drawer: Drawer, left: Image.Image, right: Image.Image, seed: int) -> list[Image.Image]:
    """Left and right half of a sample in which each reference has a mask of its half."""
    mask = torch.zeros(1, 2)
    mask[0, 0] = 1
    prompts = [drawer.prompt(left, Region(mask)), drawer.prompt(right, Region(1 - mask))]
    side = data.SIDE
    picture = drawer.draw("", prompts, seed, (2 * side, side))
    return [picture.crop((x, 0, x + side, side)) for x in (0, side)]


def regions(drawer: Drawer, items: Sequence[Item]) -> list[list[str]]:
    """Rows of a table: attribute, fraction of halves that show their own reference's, and the other's. A pair whose
    references share an attribute is not counted for it."""
    own, other, count = (dict.fromkeys(ATTRIBUTES[:4], 0) for _ in range(3))
    for seed, pair in enumerate(zip(items[::2], items[1::2], strict=True)):
        drawn = halves(drawer, pair[0].load(), pair[1].load(), seed)
        for index, half in enumerate(drawn):
            seen = read(half)
            for name in own:
                mine, theirs = pair[index].fields[name], pair[1 - index].fields[name]
                if mine != theirs:
                    count[name] += 1
                    own[name] += getattr(seen, name) == mine
                    other[name] += getattr(seen, name) == theirs
    return [[name, _share(own[name], count[name]), _share(other[name], count[name]), str(count[name])] for name in own]


def types(drawer: Drawer, items: Sequence[Item], kinds: Iterable[str] = TYPES) -> list[list[str]]:
    """Rows of a table: weight type, and the fraction of samples with the reference's attribute, for each of ATTRIBUTES.
    The first row is the base model."""
    rows = []
    for kind in ("without", *kinds):
        agreed = dict.fromkeys(ATTRIBUTES, 0)
        for seed, item in enumerate(items):
            prompts = [] if kind == "without" else [drawer.prompt(item.load(), weight_type=kind)]
            seen = read(drawer.draw("", prompts, seed))
            for name in ATTRIBUTES:
                agreed[name] += getattr(seen, name) == item.fields[name]
        rows.append([kind, *(_share(agreed[name], len(items)) for name in ATTRIBUTES)])
    return rows


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
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
    return ended(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    drawer = Drawer(args.weights, args.adapter, args.steps)
    items = read_items(args.references, limit=args.limit)
    if args.part == "regions":
        print(markdown(("attribute", "its own", "the other's", "halves"), regions(drawer, items)))
    else:
        print(markdown(("weight type", *ATTRIBUTES), types(drawer, items)))


if __name__ == "__main__":
    raise SystemExit(main())
