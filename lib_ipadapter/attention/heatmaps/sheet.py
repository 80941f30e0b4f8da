"""Maps as pictures: a sheet of the result under heat. Each reference has a large map of all layers and steps, and
beside it two rows of small ones: groups of layers above, thirds of the steps below.

Heat is black at the sheet's smallest value and goes over purple, red and orange to a pale yellow at its largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..region import WHOLE, Box
from .recorder import COLUMNS, Array, Maps, Step

HEADS = {
    "all": "all layers and steps",
    "in": "in layers",
    "mid": "mid layers",
    "out": "out layers",
    "early": "early steps",
    "middle": "middle steps",
    "late": "late steps",
}
# Colour from 0 to 1, evenly spaced
_STOPS = np.array(
    [(0, 0, 0), (70, 12, 110), (150, 30, 100), (220, 60, 50), (250, 140, 20), (255, 250, 170)], np.float32
)
_PICTURE, _HEAT = 0.4, 0.6  # of the grey picture and of the heat in their sum
_SHORTEST, _LONGEST = 176, 320  # of a cell's longer side, in pixels
_LINE, _LETTERS, _MARGIN, _LABEL = 20, 14, 6, 100
_SMALL = (("in", "mid", "out"), ("early", "middle", "late"))
_BACK, _INK = (16, 16, 16), (230, 230, 230)

Font = Callable[[int], Any]


def plain_font(size: int) -> Any:
    """Pillow's own, for hosts that have none."""
    return ImageFont.load_default()


def colours(values: Array) -> Array:
    """[..., 3] in 0..255 of values in 0..1."""
    at = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    low = np.minimum(at.astype(int), len(_STOPS) - 2)
    share = (at - low)[..., None]
    return ((1 - share) * _STOPS[low] + share * _STOPS[low + 1]).astype(np.float32)


def spread(values: Array, size: tuple[int, int], box: Box = WHOLE) -> Array:
    """A map [h, w] over a picture [height, width] of ``size`` (width, height), of which it shows ``box``; 0
    elsewhere."""
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (*size, *size), strict=True))
    part = Image.fromarray(values.astype(np.float32)).resize(
        (max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR
    )
    whole = Image.new("F", size, 0.0)
    whole.paste(part, (left, top))
    return np.asarray(whole, np.float32)


def heated(picture: Image.Image, values: Array) -> Image.Image:
    """``picture``, grey and darkened, under the heat of values [height, width] in 0..1."""
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    return Image.fromarray((_PICTURE * grey + _HEAT * colours(values)).clip(0, 255).astype(np.uint8))


def sheet(
    picture: Image.Image,
    maps: Maps,
    title: str,
    labels: Sequence[str],
    box: Box = WHOLE,
    font: Font = plain_font,
) -> Image.Image:
    """All maps over ``picture``, of which the latents showed ``box``. labels: of the references."""
    width, height = _small(picture.size)
    # The last place is the lower right one of the last reference.
    x, y, *_ = place(picture.size, "late", len(labels) - 1)
    size = (x + max(width, _SHORTEST) + _MARGIN, y + height + _LINE + 2 * _MARGIN)
    whole = Image.new("RGB", size, _BACK)
    draw, letters = ImageDraw.Draw(whole), font(_LETTERS)
    draw.text((_MARGIN, 2), title, _INK, letters)
    _scale(whole, draw, letters, maps)
    small = picture.convert("RGB")
    for row, label in enumerate(labels):
        for name in COLUMNS:
            x, y, width, height = place(picture.size, name, row)
            if name == "all":
                draw.multiline_text((_MARGIN, y + 2), label, _INK, letters)
            draw.text((x, y - _LINE + 2), HEADS[name], _INK, letters)
            values = maps.columns[name]
            if values is None:
                draw.text((x + _MARGIN, y + 2), "none", _INK, letters)
                continue
            shown = small.resize((width, height), Image.Resampling.LANCZOS)
            whole.paste(heated(shown, _stretched(spread(values[row], shown.size, box), maps)), (x, y))
            said = f"mean {values[row].mean():.3f}, max {values[row].max():.3f}"
            draw.text((x, y + height + 2), said, _INK, letters)
    return whole


def place(size: tuple[int, int], name: str, row: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a reference's map in the sheet of a picture of ``size``. name: of COLUMNS."""
    width, height = _small(size)
    across, down = max(width, _SHORTEST) + _MARGIN, height + 2 * _LINE + _MARGIN
    top = 2 * _LINE + row * 2 * down
    if name == "all":
        return _LABEL, top + _LINE, 2 * width, 2 * height + 2 * _LINE + _MARGIN
    line = next(i for i, names in enumerate(_SMALL) if name in names)
    left = _LABEL + max(2 * width, _SHORTEST) + _MARGIN + _SMALL[line].index(name) * across
    return left, top + line * down + _LINE, width, height


def _stretched(values: Array, maps: Maps) -> Array:
    """0 at the sheet's smallest value, 1 at its largest."""
    extent = maps.top - maps.bottom
    return (values - maps.bottom) / extent if extent > 0 else values / (maps.top or 1.0)


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(max(max(size), _SHORTEST), _LONGEST) / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _scale(whole: Image.Image, draw: ImageDraw.ImageDraw, letters: Any, maps: Maps) -> None:
    """The colours from the smallest to the largest value, in a line of their own in the upper right corner."""
    width, right = 120, whole.width - _MARGIN - 50
    bar = colours(np.linspace(0, 1, width, dtype=np.float32)[None].repeat(_LINE - 8, 0))
    whole.paste(Image.fromarray(bar.astype(np.uint8)), (right - width, _LINE + 4))
    draw.text((right - width - 50, _LINE + 2), f"{maps.bottom:.3f}", _INK, letters)
    draw.text((right + 4, _LINE + 2), f"{maps.top:.3f}", _INK, letters)


def figures(maps: Maps) -> list[dict[str, Any]]:
    """Of each reference, for each of COLUMNS: mean and largest value, or None; and under "steps", for each step, its
    fraction of the sampling and the means of the in, mid and out layers, or None."""

    def of(values: Array | None, row: int) -> dict[str, float] | None:
        if values is None:
            return None
        return {"mean": round(float(values[row].mean()), 5), "max": round(float(values[row].max()), 5)}

    def means(step: Step, row: int) -> dict[str, float | None]:
        parts = {name: None if values is None else round(float(values[row]), 5) for name, values in step.means.items()}
        return {"fraction": round(step.fraction, 5), **parts}

    count = len(next(values for values in maps.columns.values() if values is not None))
    return [
        {
            **{name: of(maps.columns[name], row) for name in COLUMNS},
            "steps": [means(s, row) for s in maps.steps],
        }
        for row in range(count)
    ]
