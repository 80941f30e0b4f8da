"""The panel's charts as SVG: the weight at each layer and step, and the curve over the steps, whose points
javascript/ipadapter.js moves. Pure: no gradio and no ``modules``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from ...attention.session import Timing
from ...errors import UnitError
from ...prompts.image_prompt import prompt_fields
from ...unit import FIELDS, LAYERS, Unit
from ...unit.weights import LayerCounts, LayerWeight
from ..words import worded
from .html import failure

STEPS = 20  # columns of the chart
_CELL, _LEFT, _WIDTH, _TALL = 8, 52, 300, 90
_ABOVE = ("weight", "start", "end")  # stand above the folded groups
_TOP = 2.0  # factor at the curve's upper edge, unless a point is higher

# The fields that the charts show
SHOWN = tuple(
    f.name for f in FIELDS if f.group == LAYERS or (f.kind == "number" and f.name in ("weight", "start", "end"))
)


def charts(values: Mapping[str, Any], places: LayerCounts) -> tuple[str, str]:
    """Both charts for a unit's values of SHOWN, and what is wrong with weight, start and end, "" if nothing is. Where a
    value is wrong the charts are those without it, so that the curve can be dragged right again."""
    values, wrong, above = dict(values), "", ""
    while True:
        try:
            unit = Unit.parse({**values, "enabled": False})
            unit.check_weights()
            rule, timing = prompt_fields(unit)
            weights = rule.at(unit.weight, places)
            break
        except UnitError as error:
            field = str(error.detail["field"])
            if field not in values:  # it is the default's own by now
                return failure(worded(error)), above
            if field in _ABOVE:
                above += failure(worded(error))
            else:
                wrong += failure(worded(error))
            del values[field]
    shown = f'{wrong}<div class="ipadapter-charts">{_layers(weights, places, timing)}{_curve(timing)}</div>'
    return shown, above


def _layers(weights: Sequence[LayerWeight], places: LayerCounts, timing: Timing) -> str:
    factors = [timing.factor_at((step + 0.5) / STEPS) for step in range(STEPS)]
    highest = max((abs(w.weight * f) for w in weights for f in factors), default=0) or 1.0
    cells, labels = [], []
    for t, layer in enumerate(weights):
        name = f"layer {t} ({places.part(t)})" + (", cond to uncond" if layer.precise else "")
        for step, factor in enumerate(factors):
            value = layer.weight * factor
            look = "minus" if value < 0 else "precise" if layer.precise else "plus"
            cells.append(
                f'<rect x="{_LEFT + step * _CELL}" y="{t * _CELL}" width="{_CELL - 1}" height="{_CELL - 1}" '
                f'class="{look}" fill-opacity="{0.06 + 0.94 * abs(value) / highest:.2f}">'
                f"<title>{escape(name)}, at {(step + 0.5) / STEPS:.0%}: {value:.3g}</title></rect>"
            )
    bounds = (0, places.middle, places.output, places.count)
    for part, (first, end) in zip(("input", "middle", "output"), pairwise(bounds), strict=True):
        # in the middle of its rows, so that none lies on the next
        labels.append(f'<text x="{_LEFT - 4}" y="{(first + end) / 2 * _CELL + 4:g}" text-anchor="end">{part}</text>')
    height = places.count * _CELL
    labels.append(f'<text x="{_LEFT}" y="{height + 12}">steps &#8594;</text>')
    return (
        f'<svg class="ipadapter-layers" viewBox="0 0 {_LEFT + STEPS * _CELL} {height + 14}" role="img" '
        f'aria-label="Weight at each layer and step, at most {highest:.3g}">{"".join(cells)}{"".join(labels)}</svg>'
    )


def _curve(timing: Timing) -> str:
    """The editor: in it 0..1 of the sampling goes from left to right, and the factor 0..top upwards."""
    points = timing.curve.points or ((0.0, 1.0), (1.0, 1.0))
    low, top = min(0.0, *(y for _, y in points)), max(_TOP, *(y for _, y in points))
    begin, end = timing.start * _WIDTH, timing.end * _WIDTH
    data = ", ".join(f"{x:g}:{y:g}" for x, y in points)
    placed = [(x * _WIDTH, (top - y) * _TALL / (top - low)) for x, y in points]
    line = [(0.0, placed[0][1]), *placed, (float(_WIDTH), placed[-1][1])]
    if timing.curve.interpolation == "step":
        line = [line[0], *(pair for (_, y), (x, z) in pairwise(line) for pair in ((x, y), (x, z)))]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" data-index="{i}"/>' for i, (x, y) in enumerate(placed))
    axes = "".join(
        f'<text x="-9" y="{(top - y) * _TALL / (top - low) + 3:.1f}" text-anchor="end">{y:g}</text>'
        for y in sorted({low, 1.0, top})
    )
    axes += f'<text x="0" y="{_TALL + 16}">first step</text>'
    axes += f'<text x="{_WIDTH}" y="{_TALL + 16}" text-anchor="end">last step</text>'
    return (
        f'<svg class="ipadapter-curve" viewBox="-32 -6 {_WIDTH + 38} {_TALL + 26}" role="group" data-points="{data}" '
        f'data-low="{low:g}" data-top="{top:g}" data-width="{_WIDTH}" data-height="{_TALL}" '
        f'data-steps="{int(timing.curve.interpolation == "step")}" aria-label="Factor of the weight over the steps: '
        'drag a point or move it by the arrow keys; double-click, or Enter and Delete, add one and take one out">'
        f'<rect class="frame" width="{_WIDTH}" height="{_TALL}"/>'
        f'<rect class="acts" x="{begin:.1f}" width="{max(end - begin, 0):.1f}" height="{_TALL}"/>'
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in line)}"/>{dots}{axes}</svg>'
    )
