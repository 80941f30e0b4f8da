"""What the Train tab shows, as HTML: the state of a training with its curves and samples, and the first look at its
pictures. Pure: no gradio and no ``modules``. Every text that comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from ...errors import IPAdapterError
from ...pictures.images import load
from ...training.runs.look import Look
from ...training.runs.state import RunState
from ..panel.html import data_uri, failure

Points = Sequence[tuple[int, float]]
_WIDTH, _TALL = 560, 160
SHOWN = 3  # grids of samples


def state_html(state: RunState, curves: Mapping[str, Points], samples: Sequence[Path]) -> str:
    """A training: bar, numbers, message, curves, samples and the last lines of its log. samples: the newest last."""
    done = f"step {state.step} of {state.steps}"
    numbers = [
        done,
        "" if state.loss is None else f"loss {state.loss:.4f}",
        "" if state.validation is None else f"validation {state.validation:.4f}",
        "" if state.speed is None else f"{state.speed:.1f} pictures/s",
        "" if state.seconds_left is None else f"{duration(state.seconds_left)} left",
    ]
    listed = f"in the list of models as {state.adapter}" if state.adapter and not state.alive else ""
    parts = [
        f"<p><strong>{escape(state.name)}: {state.phase}</strong></p>",
        f'<progress max="{max(state.steps, 1)}" value="{min(state.step, state.steps)}" aria-label="{done}"></progress>',
        f"<p>{escape(', '.join(filter(None, [*numbers, listed])))}</p>",
        _message(state),
        chart(curves.get("loss", ()), curves.get("validation", ())),
        "".join(map(_sample, samples[-SHOWN:])),
        f"<details><summary>log.txt</summary><pre>{escape(chr(10).join(state.log))}</pre></details>",
    ]
    made = escape(state.adapter, quote=True)
    return f'<div class="ipadapter-train" data-alive="{int(state.alive)}" data-adapter="{made}">{"".join(parts)}</div>'


def _message(state: RunState) -> str:
    if not state.message:
        return ""
    if state.phase in ("failed", "killed"):
        return failure(state.message)
    return f'<p class="ipadapter-note">{escape(state.message)}</p>'


def duration(seconds: float) -> str:
    """In the two largest units."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


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
    return (
        f'<svg class="ipadapter-losses" viewBox="-48 -8 {_WIDTH + 56} {_TALL + 28}" role="img" aria-label="{label}">'
        f'<rect class="frame" width="{_WIDTH}" height="{_TALL}"/>{line(losses, "loss")}'
        f"{line(measured, 'validation')}{dots}{axes}</svg>"
    )


def _sample(path: Path) -> str:
    try:
        source = _picture(str(path), path.stat().st_mtime_ns)
    except (IPAdapterError, OSError):
        return ""  # it is being written
    name = escape(path.stem, quote=True)
    return f'<figure><img src="{source}" alt="Samples, {name}"><figcaption>{name}</figcaption></figure>'


@lru_cache(maxsize=16)
def _picture(path: str, version: int) -> str:
    picture: Image.Image = load(Path(path))
    return data_uri(picture, 1024)


def look_html(found: Look) -> str:
    """The first look."""
    lines = [f"{found.pictures} pictures"]
    if found.measured < found.pictures or found.opened < found.pictures:
        lines.append(f"{found.measured} of them measured and {found.opened} opened in the time for a first look")
    if found.smallest and found.largest:
        lines.append(f"from {_size(found.smallest)} to {_size(found.largest)} pixels, {found.small} will be enlarged")
    if found.references:
        lines.append(f"{found.references} with a reference of their own")
    shown = f"<p>{escape(', '.join(lines))}</p>"
    if found.captions_missing:
        shown += failure(f"{found.captions_missing} without a caption: put a .txt with one beside each")
    if found.broken_count:
        named = "; ".join(f"{key}: {reason}" for key, reason in found.broken)
        shown += failure(f"{found.broken_count} cannot be read and will be passed over: {named}")
    most = max((count for _, count in found.buckets), default=1)
    rows = "".join(
        f'<tr><td>{_size(size)}</td><td><meter min="0" max="{most}" value="{count}" aria-label="{count} pictures">'
        f"</meter></td><td>{count}</td></tr>"
        for size, count in found.buckets[:12]
    )
    return f'<div class="ipadapter-look">{shown}<table><tbody>{rows}</tbody></table></div>'


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
