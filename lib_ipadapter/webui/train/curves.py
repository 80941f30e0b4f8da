"""Measures over the weight, as SVG: a line for each method, with its intervals. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ...evaluation.stats import Estimate
from ...evaluation.table import Row

Points = Sequence[tuple[float, Estimate]]
SHADES = 6  # colours of lines, in style.css
_WIDTH, _TALL = 320, 190


def points(rows: Sequence[Row], measure: str) -> list[tuple[float, Estimate]]:
    """(weight, estimate) of the rows that have the measure."""
    return [(row.weight, row.measures[measure]) for row in rows if row.weight is not None and measure in row.measures]


def curve(title: str, lines: Mapping[str, Points]) -> str:
    """One measure; "" where no line has two points. The lines' order is that of their colours."""
    if not any(len(line) > 1 for line in lines.values()):
        return ""
    found = [estimate for line in lines.values() for _, estimate in line]
    ends = [end for one in found for end in (one.low, one.high, one.mean) if end is not None]
    weights = sorted({weight for line in lines.values() for weight, _ in line})
    low, high, left, right = min(ends), max(ends), weights[0], weights[-1]

    def x(weight: float) -> float:
        return (weight - left) / ((right - left) or 1) * _WIDTH

    def y(value: float) -> float:
        return (high - value) / ((high - low) or 1) * _TALL

    drawn = "".join(_line(i, [(x(w), y(e.mean), _bar(e, y)) for w, e in line]) for i, line in enumerate(lines.values()))
    ticks = "".join(
        f'<text x="{x(weight):.1f}" y="{_TALL + 16}" text-anchor="middle">{weight:g}</text>' for weight in weights[:12]
    )
    scale = "".join(f'<text x="-6" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3f}</text>' for v in (low, high))
    spoken = "; ".join(f"{name} {', '.join(f'{w:g}: {e.mean:.3f}' for w, e in line)}" for name, line in lines.items())
    return (
        f'<svg class="ipadapter-curve-of" viewBox="-46 -26 {_WIDTH + 60} {_TALL + 48}" role="img" '
        f'aria-label="{escape(f"{title}: {spoken}", quote=True)}"><text x="0" y="-10">{escape(title)}</text>'
        f'<rect class="frame" width="{_WIDTH}" height="{_TALL}"/>{drawn}{ticks}{scale}</svg>'
    )


def _bar(one: Estimate, y: object) -> tuple[float, float] | None:
    if one.low is None or one.high is None or not callable(y):
        return None
    return y(one.low), y(one.high)


def _line(index: int, placed: Sequence[tuple[float, float, tuple[float, float] | None]]) -> str:
    shift = (index - (SHADES - 1) / 2) * 1.5  # intervals of several lines stand beside each other
    bars = "".join(
        f'<line x1="{x + shift:.1f}" x2="{x + shift:.1f}" y1="{bar[0]:.1f}" y2="{bar[1]:.1f}"/>'
        for x, _, bar in placed if bar is not None
    )  # fmt: skip
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y, _ in placed)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
    return f'<g class="shade-{index % SHADES}"><polyline points="{path}"/>{bars}{dots}</g>'


def legend(names: Sequence[str]) -> str:
    """Which colour is which method."""
    items = "".join(f'<li class="shade-{i % SHADES}">{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="ipadapter-legend">{items}</ul>'
