"""A training as HTML: numbers, curves, samples. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ...training.runs.state import RunState
from . import texts
from .markup import duration, facts, figure, head, log, message

Points = Sequence[tuple[int, float]]
_WIDTH, _TALL = 560, 160
SHOWN = 3  # grids of samples


def state_html(state: RunState, curves: Mapping[str, Points], samples: Sequence[Path]) -> str:
    """A training: bar, numbers, message, curves, samples and the last lines of its log. samples: the newest last."""
    parts = [
        head(state.name, state.phase, state.step, state.steps),
        facts([
            (texts.STEP, f"{state.step} / {state.steps}" if state.steps else ""),
            (texts.LOSS, "" if state.loss is None else f"{state.loss:.4f}"),
            (texts.VALIDATION, "" if state.validation is None else f"{state.validation:.4f}"),
            (texts.SPEED, "" if state.speed is None else f"{state.speed:.1f}"),
            (texts.LEFT, "" if state.seconds_left is None else duration(state.seconds_left)),
            (texts.LISTED, "" if state.alive else state.adapter),
        ]),
        message(state.phase, state.message),
        chart(curves.get("loss", ()), curves.get("validation", ())),
        "".join(figure(path, path.stem, 1024) for path in samples[-SHOWN:]),
        log(state.log),
    ]  # fmt: skip
    made = escape(state.adapter, quote=True)
    return f'<div class="ipadapter-train" data-alive="{int(state.alive)}" data-adapter="{made}">{"".join(parts)}</div>'


def chart(losses: Points, measured: Points) -> str:
    """The losses over the steps, and those of the validation as dots on a line; "" before there are two."""
    if len(losses) < 2:
        return ""
    values = [value for _, value in [*losses, *measured]]
    low, high = min(values), max(values)
    first, last = losses[0][0], max(losses[-1][0], *(step for step, _ in measured or [losses[-1]]))

    def placed(points: Points) -> list[tuple[float, float]]:
        return [
            ((step - first) / max(last - first, 1) * _WIDTH, (high - value) / ((high - low) or 1) * _TALL)
            for step, value in points
        ]

    def line(points: Points, look: str) -> str:
        return f'<polyline class="{look}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed(points))}"/>'

    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed(measured))
    axes = (
        f'<text x="-6" y="9" text-anchor="end">{high:.3g}</text>'
        f'<text x="-6" y="{_TALL}" text-anchor="end">{low:.3g}</text><text x="0" y="{_TALL + 15}">{first}</text>'
        f'<text x="{_WIDTH}" y="{_TALL + 15}" text-anchor="end">{last}</text>'
    )
    label = f"Loss over the steps, from {losses[0][1]:.3g} to {losses[-1][1]:.3g}"
    label += f"; validation loss {measured[-1][1]:.3g}" if measured else ""
    drawn = (
        f'<svg class="ipadapter-losses" viewBox="-48 -8 {_WIDTH + 56} {_TALL + 28}" role="img" aria-label="{label}">'
        f'<rect class="frame" width="{_WIDTH}" height="{_TALL}"/>{line(losses, "loss")}'
        f"{line(measured, 'validation')}{dots}{axes}</svg>"
    )
    return f"<figure>{drawn}<figcaption>{texts.LOSSES}</figcaption></figure>"
