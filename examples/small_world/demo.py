"""One sheet that explains the extension, sampled by the small world's models: python -m examples.small_world.demo

Rows are held-out references, columns are weights; image prompt alone, with a text prompt, img2img and inpainting. It
runs on a CPU in a few minutes, without a WebUI.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib_ipadapter.cli import ended
from lib_ipadapter.errors import FileError

from . import data, models
from .drawer import SIZE, Drawer

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS, SEED = 25, 7
GAP, LABEL, HEAD = 8, 176, 44
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One row of the sheet. title: its label; reference: the image prompt; prompt: the text prompt; begin, mask: start
    image and mask of img2img and inpainting."""

    title: str
    reference: Image.Image
    prompt: str = ""
    begin: Image.Image | None = None
    mask: Image.Image | None = None
    strength: float = 1.0


def rows() -> list[Row]:
    """The rows; every reference is a held-out combination."""
    star = _drawing("star", "orange", "dotted", "sky")
    heart = _drawing("heart", "pink", "checkered", "mint")
    diamond = _drawing("diamond", "cyan", "striped", "beige")
    ring = _drawing("ring", "purple", "plain", "gray")
    square = _drawing("square", "yellow", "plain", "white")
    alone = [Row("image prompt alone", picture) for picture in (star, heart, diamond)]
    hole = Image.new("L", SIZE, 0)
    ImageDraw.Draw(hole).ellipse((24, 24, 104, 104), fill=255)
    return [
        *alone,
        Row('with text:\n"a green shape"', star, "a green shape"),
        Row('with text:\n"a triangle"', diamond, "a triangle"),
        Row("img2img", heart, begin=square, strength=0.75),
        Row("inpainting:\nthe circle is redrawn", ring, begin=square, mask=hole),
    ]


def _drawing(shape: str, colour: str, texture: str, background: str) -> Image.Image:
    thing = data.Thing(shape, colour, texture, "large", "centre")
    return data.draw(data.Scene((thing,), background), np.random.default_rng(SEED))


def draw(folder: Path, adapter: str, show: Callable[[int], None] = lambda count: None) -> Image.Image:
    """The whole sheet. ``show`` is called with 1 after each sample. Raises FileError, ModelError."""
    drawer = Drawer(folder, adapter, STEPS)
    drawn = []
    for row in rows():
        cells = []
        prompt = drawer.prompt(row.reference)
        for weight in WEIGHTS:
            weighted = dataclasses.replace(prompt, weight=weight)
            cells.append(
                drawer.draw(row.prompt, [weighted], SEED, init_image=row.begin, strength=row.strength, mask=row.mask)
            )
            show(1)
        drawn.append((row, cells))
    return _sheet(drawn)


def _sheet(drawn: Sequence[tuple[Row, Sequence[Image.Image]]]) -> Image.Image:
    columns = 2 + len(WEIGHTS)
    step = data.SIDE + GAP
    sheet = Image.new("RGB", (LABEL + columns * step + GAP, 2 * HEAD + len(drawn) * step), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), "IP-Adapter on the small world: the larger the weight, the more the sample follows the "
             "reference.", fill=INK, font=_font(16))  # fmt: skip
    pen.text((GAP, GAP + 22), "Left: label and start image of a row. These combinations of shape, colour and "
                              "texture were "
             "excluded from training.", fill=FAINT, font=_font(14))  # fmt: skip
    heads = ["begins with", "reference", *(f"weight {weight:g}" for weight in WEIGHTS)]
    for column, text in enumerate(heads):
        left = LABEL + column * step + (data.SIDE - pen.textlength(text, font=_font(14))) / 2
        pen.text((left, HEAD + 20), text, fill=INK, font=_font(14))
    for y, (row, cells) in enumerate(drawn):
        top = 2 * HEAD + y * step
        pen.multiline_text((GAP, top + 48), row.title, fill=INK, font=_font(14))
        for column, picture in _cells(row, cells):
            sheet.paste(picture, (LABEL + column * step, top))
    return sheet


def _cells(row: Row, cells: Sequence[Image.Image]) -> Iterator[tuple[int, Image.Image]]:
    if row.begin is not None:
        begin = row.begin.copy()
        if row.mask is not None:
            grey = Image.new("RGB", SIZE, (150, 150, 150))
            begin = Image.composite(Image.blend(begin, grey, 0.8), begin, row.mask)
        yield 0, begin
    yield 1, row.reference
    yield from enumerate(cells, 2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from the system or from matplotlib; otherwise Pillow's built-in font, which has one size and Latin
    only."""
    names = ["DejaVuSans.ttf"]
    if found := importlib.util.find_spec("matplotlib"):
        names.append(str(Path(found.origin or "").parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for name in names:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default()


def _make_room(out: Path) -> None:
    """Creates the output folder before anything is sampled. Raises FileError."""
    if out.suffix.lower() != ".png":
        raise FileError(out, "expected a name that ends in .png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(out, f"its folder cannot be made: {error.strerror}; choose another") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the sheet and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs") / "demo.png")
    parser.add_argument("--weights", type=Path, default=models.WEIGHTS, help="folder of the models")
    parser.add_argument("--adapter", default=models.BASE_ADAPTER.name, help="file in that folder")
    args = parser.parse_args(argv)
    return ended(lambda: _write(args.out, args.weights, args.adapter))


def _write(out: Path, weights: Path, adapter: str) -> None:
    from tqdm import tqdm

    _make_room(out)
    with tqdm(total=len(rows()) * len(WEIGHTS), unit="picture", file=sys.stderr) as bar:
        picture = draw(weights, adapter, bar.update)
    picture.save(out)
    print(out.resolve())


if __name__ == "__main__":
    raise SystemExit(main())
