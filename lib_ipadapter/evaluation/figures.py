"""The grid of pictures, and the curve of CLIP-I over CLIP-T."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..atomic import replacing
from ..errors import ModelError
from ..pictures import images
from .items import Item
from .pictures import weight_text
from .stats import Estimate
from .table import REFERENCE, Results

SIDE = 192  # pixels of a picture in the grid, at most
LINE = 20  # pixels of a line of text
GAP = 4


def grid(
    items: Sequence[Item], columns: Sequence[tuple[str, float | None]], path_of: Callable[[int, int], Path],
    out: Path,
) -> None:  # fmt: skip
    """References in the first column, the first picture of each (method, λ) in the others, captions below.
    path_of(column, row): its file. Raises FileError, ImageError."""
    firsts = [[path_of(c, r) for c in range(len(columns))] for r in range(len(items))]
    side = min(SIDE, max(images.load(firsts[0][0]).size))
    names = [REFERENCE, *(name if w is None else f"{name} {weight_text(w)}" for name, w in columns)]
    step, high = side + GAP, side + LINE + GAP
    sheet = Image.new("RGB", (step * len(names) + GAP, LINE + high * len(items)), "white")
    pen, font = ImageDraw.Draw(sheet), _font()
    for c, name in enumerate(names):
        _write(pen, font, (GAP + c * step, 3), name, side)
    for r, item in enumerate(items):
        top = LINE + r * high
        for c, picture in enumerate([item.load(), *map(images.load, firsts[r])]):
            sheet.paste(images.fit(picture, side, "pad", images.WHITE), (GAP + c * step, top))
        _write(pen, font, (GAP, top + side + 2), item.caption, sheet.width - 2 * GAP)
    with replacing(out) as part:
        sheet.save(part, "PNG")


def _font() -> Any:
    """A font with letters of all kinds, if one is there."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", 12)
    except OSError:
        return ImageFont.load_default()


def _write(pen: ImageDraw.ImageDraw, font: Any, at: tuple[int, int], text: str, width: int) -> None:
    """One line of text, cut to ``width`` pixels."""
    text = " ".join(text.split())
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")
    if pen.textlength(text, font=font) > width:
        while text and pen.textlength(f"{text}...", font=font) > width:
            text = text[:-1]
        text = f"{text}..."
    pen.text(at, text, fill="black", font=font)


def curve(results: Results, out: Path) -> bool:
    """CLIP-I over CLIP-T along λ, a line for each method, points for those without λ, with their intervals.
    False, and nothing is drawn, when no method has two λ. Raises ModelError without matplotlib, FileError."""
    lines = {name: rows for name, rows in results.lines().items() if len(rows) > 1}
    if not lines:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ModelError("matplotlib is not installed; run: pip install matplotlib") from None
    figure = Figure(figsize=(7, 5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    alone = {row.method: [row] for row in results.rows if row.weight is None and "clip_i" in row.measures}
    for name, rows in {**lines, **alone}.items():
        x, y = ([row.measures[key] for row in rows] for key in ("clip_t", "clip_i"))
        axes.errorbar(
            [e.mean for e in x], [e.mean for e in y], xerr=_bars(x), yerr=_bars(y), label=name, marker="o",
            capsize=2, linewidth=1.5, elinewidth=0.8,
        )  # fmt: skip
        for row, a, b in zip(rows, x, y, strict=True):
            if row.weight is not None:
                axes.annotate(f"λ={row.weight:g}", (a.mean, b.mean), (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("CLIP-T (the text)")
    axes.set_ylabel("CLIP-I (the reference)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(out) as part:
        figure.savefig(part, format="png", bbox_inches="tight")
    return True


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths below and above the means; 0 where there is no interval."""
    below = [0.0 if e.low is None else max(e.mean - e.low, 0.0) for e in estimates]
    above = [0.0 if e.high is None else max(e.high - e.mean, 0.0) for e in estimates]
    return [below, above]
