"""What the panel shows beside its controls, as HTML: thumbnails, what a file is, notes, progress.

Pure: no gradio and no ``modules``. Every text that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import IPAdapterError
from ...pictures import preprocess
from ...pictures.preprocess import Preprocess
from ...unit.crops import Box

_THUMB = 224  # pixels of the side at most; shown smaller, sharp on dense screens


@lru_cache(maxsize=512)
def square(path: str, size: int, how: Preprocess, box: Box | None) -> str:
    """The square that the encoder will see, as a data URI. ``path`` names its content: gradio puts each
    upload under the hash of its bytes. Raises ImageError."""
    from ...pictures.images import load

    return _data_uri(preprocess.square(preprocess.cut(load(Path(path)), box, None), how, size), _THUMB)


@lru_cache(maxsize=8)
def whole(path: str) -> str:
    """The whole picture as a data URI, at most 1024 pixels wide and high, to draw the box on. Raises ImageError."""
    from ...pictures.images import load

    return _data_uri(load(Path(path)), 1024)


_PADS = {
    "mask": ("Paint or load a mask", "Change the mask", "The unit acts in the white area."),
    "focus": (
        "Paint or load a mask for the references",
        "Change the mask",
        "White parts of the references are used.",
    ),
}


def pad(name: str, uri: str) -> str:
    """The mask of a field (a data URI, or "" for none) as a preview and buttons; javascript/ipadapter.js handles
    them."""
    empty, filled, says = _PADS[name]
    shown = _mask_preview(uri) if uri else ""
    image = f'<img src="{shown}" alt="{escape(says)}">' if shown else ""
    button = '<button type="button" class="{}" data-field="{}">{}</button>'
    buttons = button.format("ipadapter-paint", name, filled if uri else empty)
    if uri:
        buttons += button.format("ipadapter-unpaint", name, "Remove the mask")
    return f'<div class="ipadapter-pad">{image}<div>{buttons}</div></div>'


@lru_cache(maxsize=32)
def _mask_preview(uri: str) -> str:
    """A small picture of a mask; "" for one that cannot be read, which is refused when it is used."""
    from ...pictures.images import load

    try:
        return _data_uri(load(uri), 160)
    except IPAdapterError:
        return ""


def _data_uri(seen: Image.Image, side: int) -> str:
    seen.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    seen.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=2048)
def picture_hash(path: str) -> str:
    """The hash by which an infotext names the picture; "" for one that cannot be read."""
    from ...pictures.images import content_hash, load

    try:
        return content_hash(load(Path(path)))
    except (IPAdapterError, OSError):
        return ""


def thumbnails(
    paths: Sequence[str],
    weights: Sequence[float | None],
    size: int,
    how: Preprocess,
    boxes: Sequence[Box | None],
) -> str:
    """All pictures of a unit as a row of squares, each with its weight and a button that takes it out."""
    triples = enumerate(zip(paths, weights, boxes, strict=True))
    tiles = [_tile(i, path, weight, size, how, box) for i, (path, weight, box) in triples]
    return f'<div class="ipadapter-thumbs" role="list">{"".join(tiles)}</div>' if tiles else ""


def _tile(index: int, path: str, weight: float | None, size: int, how: Preprocess, box: Box | None) -> str:
    name = escape(Path(path).name, quote=True)
    try:
        title = f"{name}: what the encoder will see. Click to choose the part that counts"
        at = ",".join(map(str, box or ()))
        source = square(path, size, how, box)
        inside = f'<img src="{source}" alt="{name}" title="{title}" data-index="{index}" data-box="{at}">'
    except (IPAdapterError, OSError) as error:
        inside = f'<p class="ipadapter-error" title="{name}">{escape(str(error))}</p>'
    caption = "" if weight is None else f"<figcaption>&times; {weight:g}</figcaption>"
    action = f'class="ipadapter-remove" data-index="{index}" title="Remove {name}"'
    inside += f'<button type="button" {action}>\u2715</button>{caption}'
    return f'<figure class="ipadapter-thumb" role="listitem">{inside}</figure>'


def file_info(description: Mapping[str, Any] | None) -> str:
    """What a model's file is: chips for kind, base and encoder, or the error in full."""
    if description is None:
        return ""
    if description.get("error"):
        return failure(str(description["error"]))
    state = "found" if description.get("encoder_found") else "missing"
    encoder = f"{description.get('encoder') or 'image encoder'} {state}"
    chips = [(description.get("title"), ""), (description.get("base"), ""), (encoder, state)]
    spans = [_chip(str(what), look) for what, look in chips if what]
    title = escape(str(description.get("text", "")), quote=True)
    return f'<div class="ipadapter-info" title="{title}">{"".join(spans)}</div>'


def _chip(text: str, look: str) -> str:
    return f'<span class="ipadapter-chip {look}">{escape(text)}</span>'


def failure(text: str) -> str:
    """An error where the user looks."""
    return f'<p class="ipadapter-error" role="alert">{escape(text)}</p>'


def note(text: str) -> str:
    """A remark in small print; "" stays empty."""
    return f'<p class="ipadapter-note">{escape(text)}</p>' if text else ""


def progress(done: int, total: int | None, name: str) -> str:
    """A download's progress: MB, and a bar where the size is known."""
    mb = f"{done / 1e6:.0f}" + (f" of {total / 1e6:.0f}" if total else "") + " MB"
    extent = f' max="{total}" value="{min(done, total)}"' if total else ""
    bar = f"<progress{extent}></progress>"
    return f'<div class="ipadapter-progress">{bar}<span>{escape(name)}: {mb}</span></div>'
