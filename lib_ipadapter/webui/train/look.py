"""The first look at a training's pictures, as HTML. Pure."""

from __future__ import annotations

from html import escape

from ...training.runs.look import Look
from . import texts
from .markup import facts


def look_html(found: Look) -> str:
    """Counts, what is wrong, and the sizes that the pictures are cut to."""
    partly = found.measured < found.pictures or found.opened < found.pictures
    shown = facts([
        (texts.PICTURES, found.pictures),
        (texts.MEASURED, found.measured if partly else ""),
        (texts.OPENED, found.opened if partly else ""),
        (texts.SMALLEST, _size(found.smallest) if found.smallest else ""),
        (texts.LARGEST, _size(found.largest) if found.largest else ""),
        (texts.ENLARGED, found.small if found.largest else ""),
        (texts.REFERENCES, found.references or ""),
    ])  # fmt: skip
    if found.captions_missing:
        shown += _wrong(found.captions_missing, texts.UNCAPTIONED)
    if found.broken_count:
        named = "; ".join(f"{key}: {reason}" for key, reason in found.broken)
        shown += _wrong(found.broken_count, texts.BROKEN, named)
    most = max((count for _, count in found.buckets), default=1)
    rows = "".join(
        f'<tr><td>{_size(size)}</td><td><meter min="0" max="{most}" value="{count}" aria-label="{count}"></meter></td>'
        f"<td>{count}</td></tr>"
        for size, count in found.buckets[:12]
    )
    table = f"<table><caption>{texts.CUT}</caption><tbody>{rows}</tbody></table>" if rows else ""
    return f'<div class="ipadapter-look">{shown}{table}</div>'


def _wrong(count: int, words: str, named: str = "") -> str:
    """An error whose words stand apart from its number and names."""
    return f'<p class="ipadapter-error" role="alert">{count} <span>{words}</span> {escape(named)}</p>'


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
