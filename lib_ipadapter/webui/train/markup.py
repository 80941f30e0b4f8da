"""HTML that trainings and evaluations share. Pure: no gradio and no ``modules``. Words stand in elements of their own,
apart from names and numbers: the WebUI translates whole texts. What comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from ...errors import IPAdapterError
from ...pictures.images import load
from ..panel.html import data_uri, failure
from .texts import PHASES


def head(name: str, phase: str, done: int, total: int) -> str:
    """What it is called, what it does, and a bar."""
    return (
        f'<p class="ipadapter-head"><strong>{escape(name)}</strong> '
        f'<span class="ipadapter-phase {phase}">{PHASES[phase]}</span></p>'
        f'<progress max="{max(total, 1)}" value="{min(done, total)}" aria-label="{done} / {total}"></progress>'
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Numbers with what they are; those that are "" are left out."""
    shown = [(word, escape(str(value))) for word, value in pairs if value != ""]
    return f'<dl class="ipadapter-facts">{"".join(f"<div><dt>{word}</dt><dd>{v}</dd></div>" for word, v in shown)}</dl>'


def message(phase: str, text: str) -> str:
    """Why it ended, as an error where it did not end well; or what it does."""
    if not text:
        return ""
    return failure(text) if phase in ("failed", "killed") else f'<p class="ipadapter-note">{escape(text)}</p>'


def log(lines: Sequence[str]) -> str:
    """The last lines of its log, folded."""
    return f"<details><summary>log.txt</summary><pre>{escape(chr(10).join(lines))}</pre></details>"


def duration(seconds: float) -> str:
    """In the two largest units."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def figure(path: Path, caption: str, side: int) -> str:
    """A picture of at most ``side`` pixels; "" for one that is being written."""
    try:
        source = _picture(str(path), path.stat().st_mtime_ns, side)
    except (IPAdapterError, OSError):
        return ""
    text = escape(caption, quote=True)
    return f'<figure><div><img src="{source}" alt="{text}"></div><figcaption>{text}</figcaption></figure>'


@lru_cache(maxsize=16)
def _picture(path: str, version: int, side: int) -> str:
    picture: Image.Image = load(Path(path))
    return data_uri(picture, side)
