"""The README's pictures, sampled by the small world's models: python -m examples.small_world.recipes [--out docs]

One strip of what an image prompt does, and one picture per recipe. It runs on a CPU in a few minutes, without a WebUI.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from lib_ipadapter.attention.region import Region
from lib_ipadapter.cli import ended

from . import data, models
from .demo import _font
from .drawer import SIZE, Drawer

STEPS, SEED = 25, 7
GAP, HEAD = 10, 26
INK, PAPER = (40, 40, 40), (255, 255, 255)

Cell = tuple[str, Image.Image]


def scene(
    shape: str, colour: str, texture: str, background: str, size: str = "large", place: str = "centre"
) -> Image.Image:
    """A picture of one object, SIDE squared."""
    thing = data.Thing(shape, colour, texture, size, place)
    return data.draw(data.Scene((thing,), background), np.random.default_rng(SEED))


STAR = ("star", "orange", "dotted", "sky")
HEART = ("heart", "pink", "checkered", "mint")


def strip(drawer: Drawer) -> list[Cell]:
    """Reference, three weights, with a text prompt, two regions."""
    star, heart = scene(*STAR), scene(*HEART)
    cells = [("reference", star)]
    for weight in (0.3, 0.6, 1.0):
        cells.append((f"weight {weight:g}", drawer.draw("", [drawer.prompt(star, weight=weight)], SEED)))
    cells.append(('text "a green shape"', drawer.draw("a green shape", [drawer.prompt(star)], SEED)))
    return [*cells, ("two regions", _halves(drawer, star, heart))]


def style(drawer: Drawer) -> list[Cell]:
    """What style transfer takes of a reference."""
    star = scene(*STAR, size="small", place="left")
    return [("reference", star), *_types(drawer, star, ("linear", "style transfer"), seed=3)]


def composition(drawer: Drawer) -> list[Cell]:
    """What composition takes of it."""
    star = scene(*STAR, size="small", place="left")
    text = "a blue square"
    prompt = drawer.prompt(star, weight_type="composition")
    return [
        ("reference", star),
        (f'"{text}"', drawer.draw(text, [], 3)),
        ("composition", drawer.draw(text, [prompt], 3)),
    ]


def regions(drawer: Drawer) -> list[Cell]:
    """Two units with a mask each."""
    star, heart = scene(*STAR), scene(*HEART)
    return [
        ("unit 1: left half", star),
        ("unit 2: right half", heart),
        ("result", _halves(drawer, star, heart)),
    ]


def several(drawer: Drawer) -> list[Cell]:
    """Two references in one unit."""
    one, other = scene("circle", "yellow", "dotted", "sky"), scene("circle", "blue", "striped", "sky")
    cells = [("reference 1", one), ("reference 2", other)]
    for combine in ("concat", "average"):
        cells.append((combine, drawer.draw("", [drawer.prompt_of([one, other], combine=combine)], 5)))
    return cells


def in_turn(drawer: Drawer) -> list[Cell]:
    """One reference per picture of a batch."""
    scenes = [scene(*STAR), scene(*HEART), scene("diamond", "cyan", "striped", "beige")]
    cells = [(f"reference {i}", picture) for i, picture in enumerate(scenes, 1)]
    return [
        *cells,
        *((f"result {i}", drawer.draw("", [drawer.prompt(p)], SEED)) for i, p in enumerate(scenes, 1)),
    ]


def inpaint(drawer: Drawer) -> list[Cell]:
    """A thing from a reference put into a picture."""
    begin, ring = scene("square", "yellow", "plain", "white"), scene("ring", "purple", "plain", "gray")
    hole = Image.new("L", SIZE, 0)
    ImageDraw.Draw(hole).ellipse((20, 20, 108, 108), fill=255)
    shown = Image.composite(Image.blend(begin, Image.new("RGB", SIZE, (150, 150, 150)), 0.8), begin, hole)
    result = drawer.draw("", [drawer.prompt(ring)], SEED, init_image=begin, mask=hole, strength=1.0)
    return [("picture and mask", shown), ("reference", ring), ("result", result)]


RECIPES: dict[str, Callable[[Drawer], list[Cell]]] = {
    "strip": strip,
    "recipe-style": style,
    "recipe-composition": composition,
    "recipe-regions": regions,
    "recipe-several": several,
    "recipe-one-per-result": in_turn,
    "recipe-inpaint": inpaint,
}


def _types(drawer: Drawer, reference: Image.Image, kinds: Sequence[str], seed: int) -> list[Cell]:
    return [(kind, drawer.draw("", [drawer.prompt(reference, weight_type=kind)], seed)) for kind in kinds]


def _halves(drawer: Drawer, left: Image.Image, right: Image.Image) -> Image.Image:
    mask = torch.zeros(1, 2)
    mask[0, 0] = 1
    prompts = [drawer.prompt(left, Region(mask)), drawer.prompt(right, Region(1 - mask))]
    return drawer.draw("", prompts, 1, (2 * data.SIDE, data.SIDE))


def sheet(cells: Sequence[Cell]) -> Image.Image:
    """The pictures side by side, a label over each."""
    width = sum(picture.width + GAP for _, picture in cells) + GAP
    made = Image.new("RGB", (width, data.SIDE + HEAD + GAP), PAPER)
    pen, left = ImageDraw.Draw(made), GAP
    for label, picture in cells:
        pen.text((left, 6), label, fill=INK, font=_font(12))
        made.paste(picture, (left, HEAD))
        left += picture.width + GAP
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the pictures and prints their names."""
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder")
    parser.add_argument("--weights", type=Path, default=models.WEIGHTS, help="folder of the models")
    parser.add_argument("--only", help="one of them", choices=tuple(RECIPES))
    args = parser.parse_args(argv)
    return ended(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    drawer = Drawer(args.weights, steps=STEPS)
    for name in [args.only] if args.only else RECIPES:
        path = args.out / f"{name}.png"
        sheet(RECIPES[name](drawer)).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    raise SystemExit(main())
