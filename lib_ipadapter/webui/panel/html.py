"""What the panel shows beside its controls, as HTML: thumbnails, what a file is, notes, progress.

Pure: no gradio and no ``modules``. Every text that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from ...cache import LRU
from ...errors import IPAdapterError
from ...pictures import preprocess
from ...pictures.preprocess import Preprocess
from ...unit.crops import Box
from ...unit.fields import WEIGHT_RANGE
from ...unit.names import INPUT


class Seen(NamedTuple):
    """How a picture is shown: a data URI, what it is in words, and what stands below it, as HTML."""

    source: str
    what: str
    below: str = ""


See = Callable[[str, "Box | None", str], Seen]  # of a picture (its path), cut to a box, under a mask (a data URI)
NON_COMMERCIAL = "research, non-commercial use only"  # of InsightFace's models, said before they are downloaded
_SQUARES: LRU[str] = LRU(lambda: 512)  # data URIs of what encoders see, and of masks
_MASKS: LRU[str] = LRU(lambda: 32)
_PATHS: dict[str, Path] = {}  # of pictures that were shown, by hash
INPUT_TEXT = f"input: {INPUT}"  # the reference that is img2img's own picture, among the saved ones
INPUT_SHOWN = "the img2img image, as it is when you generate"
CHOOSE = "Choose a model: the unit cannot act without one."
NONE_FITS = (
    "No adapter here fits the checkpoint: choose another checkpoint, or add an adapter that was made for this one."
)
NONE_THERE = "There is no adapter yet: put one into models/ipadapter and press \U0001f504."
_THUMB = 224  # pixels of the side at most; shown smaller, sharp on dense screens


def by_content(uri: str) -> bytes:
    """What stands for a mask in the key of a cache: the whole of it may take megabytes."""
    return hashlib.sha256(uri.encode("utf-8", "backslashreplace")).digest()


def square(path: str, size: int, how: Preprocess, box: Box | None, focus: str = "") -> str:
    """What the encoder will see, as a data URI. ``path`` names its content: gradio puts each upload under the hash of
    its bytes. focus: the reference mask. Raises ImageError."""
    key = path, size, how, box, by_content(focus)
    return _SQUARES.get(key, lambda: _square(path, size, how, box, focus))


def _square(path: str, size: int, how: Preprocess, box: Box | None, focus: str) -> str:
    from ...pictures.images import load, load_mask

    mask = load_mask(focus) if focus else None
    picture = preprocess.cut(load(Path(path)), box, mask)
    seen = preprocess.square(picture, how, size)
    if how.fit == "tiles":
        _draw_tiles(seen, picture.size, preprocess.tiles(picture, how))
    return data_uri(seen, _THUMB)


def _draw_tiles(square: Image.Image, size: tuple[int, int], tiles: Sequence[preprocess.Tile]) -> None:
    """Frames of the tiles of a picture of ``size``, which ``square`` shows padded."""
    scale = square.width / max(size)
    x, y = ((square.width - edge * scale) / 2 for edge in size)
    draw = ImageDraw.Draw(square)
    for tile in tiles:
        side = tile.picture.width * scale
        left, top = x + tile.left * side, y + tile.top * side
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline="white", width=max(square.width // 112, 1))


@lru_cache(maxsize=8)
def whole(path: str) -> str:
    """The whole picture as a data URI, at most 1024 pixels wide and high, to draw the box on. Raises ImageError."""
    from ...pictures.images import load

    return data_uri(load(Path(path)), 1024)


_PADS = {"mask": ("Paint or load a mask", "Change the mask", "The unit acts in the white area.")}


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


def _mask_preview(uri: str) -> str:
    """A small picture of a mask; "" for one that cannot be read, which is refused when it is used."""
    return _MASKS.get(by_content(uri), lambda: _preview_of(uri))


def _preview_of(uri: str) -> str:
    from ...pictures.images import load

    try:
        return data_uri(load(uri), 160)
    except IPAdapterError:
        return ""


def data_uri(seen: Image.Image, side: int) -> str:
    """A JPEG of at most ``side`` pixels; shrinks ``seen`` in place."""
    seen.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    seen.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=2048)
def picture_hash(path: str) -> str:
    """The hash by which an infotext names the picture; "" for one that cannot be read."""
    from ...pictures.images import content_hash, load

    try:
        digest = content_hash(load(Path(path)))
    except (IPAdapterError, OSError):
        return ""
    if len(_PATHS) < 2048:
        _PATHS[digest] = Path(path)
    return digest


def known_name(digest: str) -> str:
    """The file's name of a picture that the panel has shown, by its hash; "" if it has not."""
    return _PATHS[digest].name if digest in _PATHS else ""


def known_path(digest: str) -> str:
    """The file of a picture that the panel has shown, by its hash; "" if it has not, or the file is gone."""
    path = _PATHS.get(digest)
    return str(path) if path is not None and path.is_file() else ""


def thumbnails(
    paths: Sequence[str],
    weights: Sequence[float | None],
    boxes: Sequence[Box | None],
    see: See,
    named: Sequence[str] = (),
    masks: Sequence[str] = (),
    redraws: bool = False,
) -> str:
    """All references of a unit as a row of tiles, each with its weight and a button that takes it out; the last tile
    takes more. weights: of the pictures, then of those that are named; see: what is shown of a picture; masks: of the
    pictures; redraws: img2img, whose picture can be a reference too."""
    several = len(paths) + len(named) > 1 or any(weight not in (None, 1) for weight in weights)
    parts = zip(paths, boxes, masks or [""] * len(paths), strict=True)
    tiles = [_tile(i, path, box, mask, see) for i, (path, box, mask) in enumerate(parts)]
    tiles += [_named_tile(len(paths) + i, name) for i, name in enumerate(named)]
    names = [*(Path(path).name for path in paths), *named]
    figures = [
        f'<figure class="ipadapter-thumb{"" if i < len(paths) else " ipadapter-named"}" role="listitem" '
        f'data-index="{i}">{tile}{_weight(name, weight) if several else ""}</figure>'
        for i, (tile, name, weight) in enumerate(zip(tiles, names, [*weights, *[None] * len(names)], strict=False))
    ]
    adder = (
        '<div role="listitem"><button type="button" class="ipadapter-adder"><span aria-hidden="true">+</span>'
        "Drop, paste<br>or browse</button>"
    )
    if redraws and INPUT_TEXT not in named:
        adder += '<button type="button" class="ipadapter-input">Use the img2img image</button>'
    adder += "</div>"
    return f'<div class="ipadapter-thumbs" role="list">{"".join(figures)}{adder}</div>'


def _weight(name: str, weight: float | None) -> str:
    value = 1 if weight is None else weight
    low, high = WEIGHT_RANGE
    label = escape(f"Weight of {name}", quote=True)
    return (
        f'<label class="ipadapter-weight">weight <input type="number" min="{low:g}" max="{high:g}" step="0.05" '
        f'value="{value:g}" aria-label="{label}"></label>'
    )


def _tile(index: int, path: str, box: Box | None, mask: str, see: See) -> str:
    name = escape(Path(path).name, quote=True)
    try:
        source, what, below = see(path, box, mask)
    except (IPAdapterError, OSError) as error:
        text = escape(f"{Path(path).name}: {error}")
        return f'<div class="ipadapter-picture"><p class="ipadapter-error">{text}</p>{_remove(index, name)}</div>'
    at = ",".join(map(str, box or ()))
    title = f"{name}, {what}. Click to crop or mask it; drag, or Alt and an arrow key, to move it"
    done = " ".join(word for word, there in (("\u2702 cropped", box), ("masked", mask)) if there)
    cut = f'<span class="ipadapter-cut">{done}</span>' if done else ""
    return (
        f'<div class="ipadapter-picture"><button type="button" class="ipadapter-open" data-index="{index}" '
        f'data-box="{at}" title="{title}" draggable="true"><img src="{source}" alt="{name}" draggable="false"></button>'
        f"{cut}{_remove(index, name)}</div>{below}"
    )


def face_buttons(sources: Sequence[str], chosen: int) -> str:
    """All faces that were found in a picture, from the left, each a button that chooses it."""
    buttons = [
        f'<button type="button" class="ipadapter-face" data-face="{i}" aria-pressed="{str(i == chosen).lower()}" '
        f'title="Face {i} from the left"><img src="{source}" alt="Face {i}"></button>'
        for i, source in enumerate(sources)
    ]
    return f'<div class="ipadapter-faces">{"".join(buttons)}</div>'


def _named_tile(index: int, text: str) -> str:
    name = escape(INPUT_SHOWN if text == INPUT_TEXT else text, quote=True)
    return f'<div class="ipadapter-picture"><p title="{name}">{name}</p>{_remove(index, name)}</div>'


def _remove(index: int, name: str) -> str:
    label = f'title="Remove {name}" aria-label="Remove {name}"'
    return f'<button type="button" class="ipadapter-remove" data-index="{index}" {label}>\u2715</button>'


def listed_names(presets: Sequence[str], saved: Sequence[str]) -> str:
    """What is saved, for the page to ask before it is replaced."""
    embeds = [name.partition(": ")[2] for name in saved if name.startswith("embeds: ")]
    lists = {"preset": list(presets), "embeds": embeds}
    return f'<div class="ipadapter-names" data-names="{escape(json.dumps(lists), quote=True)}"></div>'


def folds_text(folds: Mapping[str, Any]) -> str:
    """What is in the folded groups, for the page."""
    return f'<div data-folds="{escape(json.dumps(folds, default=list), quote=True)}"></div>'


def file_info(description: Mapping[str, Any] | None) -> str:
    """What a model's file is: chips for kind, base and encoder; below them, or alone, each error in full."""
    if description is None:
        return ""
    wrong = str(description.get("error") or "")
    if wrong and not description.get("base"):  # nothing is known of the file
        return failure(wrong)
    state = "found" if description.get("encoder_found") else "missing"
    encoder = f"{description.get('encoder') or 'image encoder'} {state}"
    pages = dict(description.get("pages") or {})
    chips = [(description.get("title"), "", ""), (*_base_chip(description), "")]
    pack, missing = description.get("face_models"), str(description.get("face_error") or "")
    if not wrong and (description.get("encoder") or not pack):
        chips.append((encoder, state, pages.get("encoder", "")))
    if pack:
        look = "missing" if missing else "found"
        chips.append((f"face models {pack} {look}", look, pages.get("face_models", "")))
    unparsed = description.get("parsing")
    if unparsed is not None:
        look = "missing" if unparsed else "found"
        chips.append((f"face parsing {look}", look, pages.get("parsing", "")))
    control, none = description.get("control"), str(description.get("control_error") or "")
    if control or none:
        chips.append(("ControlNet missing", "missing", "") if none else (f"ControlNet {control} found", "found", ""))
    spans = [_chip(str(what), look, page) for what, look, page in chips if what]
    title = escape(str(description.get("text", "")), quote=True)
    told = "".join(failure(text) for text in (wrong, missing, unparsed, none) if text)
    return f'<div class="ipadapter-info" title="{title}">{"".join(spans)}</div>{told}'


def _base_chip(description: Mapping[str, Any]) -> tuple[str, str]:
    base, loaded = str(description.get("base") or ""), str(description.get("checkpoint") or "")
    fits = description.get("fits")
    if fits is None or not base:
        return base, ""
    return (f"{base}: fits {loaded}", "found") if fits else (f"made for {base}, not for {loaded}", "missing")


def _chip(text: str, look: str, page: str = "") -> str:
    """page: where what is missing can be had."""
    if not page:
        return f'<span class="ipadapter-chip {look}">{escape(text)}</span>'
    link = f'href="{escape(page, quote=True)}" target="_blank" rel="noopener noreferrer"'
    return f'<a class="ipadapter-chip {look}" {link}>{escape(text)} ↗</a>'


def failure(text: str) -> str:
    """An error where the user looks."""
    return f'<p class="ipadapter-error" role="alert">{escape(text)}</p>'


def note(text: str) -> str:
    """A remark in small print; "" stays empty."""
    return f'<p class="ipadapter-note">{escape(text)}</p>' if text else ""


def wanting(models: Sequence[bool | None]) -> str:
    """What to do about a unit that has references and no model. models: of each adapter, whether it fits the
    checkpoint, None where that is not known."""
    text = CHOOSE if any(fits is not False for fits in models) else NONE_FITS if models else NONE_THERE
    return f'<p class="ipadapter-hint">{escape(text)}</p>'


def progress(done: int, total: int | None, name: str) -> str:
    """A download's progress: MB, and a bar where the size is known."""
    mb = f"{done / 1e6:.0f}" + (f" of {total / 1e6:.0f}" if total else "") + " MB"
    extent = f' max="{total}" value="{min(done, total)}"' if total else ""
    bar = f"<progress{extent}></progress>"
    return f'<div class="ipadapter-progress">{bar}<span>{escape(name)}: {mb}</span></div>'
