"""What the panel's events do, apart from how its components are laid out."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from ...errors import IPAdapterError, UnitError
from ...pictures import preprocess
from ...unit import FIELDS, crops
from ...unit.presets import KEPT
from ...unit.weights import SD, SDXL
from .. import settings
from ..infotext import match, weights_text
from . import html
from .charts import SHOWN, charts
from .values import NO_MODEL, panel_default, parse_weights

CLEARED = ("negative", "box", "focus", "mask")  # go with the references that they belong to
PREPROCESSING = ("fit", "position", "sharpen", "box")
_ENABLED = next(field for field in FIELDS if field.name == "enabled")


class UnitEvents:
    """The handlers of one unit. ``models`` is what build_panel was given."""

    def __init__(self, index: int, models: Any) -> None:
        self.index = index
        self.models = models

    # pictures: ``files`` are gradio's file objects. Each change is followed by ``show``.

    def add(self, new: Any, files: Any, weights: Any, saved: Any) -> list[Any]:
        """Pictures from the drop zone go behind those at hand; the unit is switched on."""
        present, added = paths_of(files), paths_of(new)
        return [
            present + added,
            extended(str(weights or ""), len(present), len(added), len(saved or [])),
            True,
        ]

    def remove(self, files: Any, weights: Any, saved: Any, place: Any) -> list[Any]:
        """Takes one picture out, by its place; only the first unit stays on without pictures."""
        paths, named = paths_of(files), len(saved or [])
        kept = [i for i in range(len(paths)) if str(i) != str(place)]
        if not kept and not named:
            return self.clear()[:3]
        places = [*kept, *range(len(paths), len(paths) + named)]
        text = _without(str(weights or ""), len(paths) + named, places)
        return [[paths[i] for i in kept] or None, text, gr.update()]

    def clear(self) -> list[Any]:
        """Takes all references out, with what belongs to them: values of images, their weights, enabled, saved
        references, and CLEARED."""
        return [
            None,
            "",
            panel_default(_ENABLED, self.index),
            [],
            *(None if name == "negative" else "" for name in CLEARED),
        ]

    def show(self, files: Any, weights: Any, model: Any, wanted: Any, saved: Any, *look: Any) -> list[Any]:
        """Thumbnails as the encoder will see them, and whether they are those of a pasted text. look: the
        values of PREPROCESSING."""
        paths, text = paths_of(files), str(weights or "")
        count = len(paths) + len(saved or [])
        numbers, problem = _numbers(text, count)
        numbers = numbers[: len(paths)]
        fit, position, sharpen, box = look
        try:
            boxes = crops.boxes(crops.parse_boxes(box or ""), len(paths))
        except UnitError as error:
            boxes, problem = [None] * len(paths), problem or (str(error) if paths else "")
        size = self.models.encoder_size(model) if is_model(model) else 224
        remark = html.note(match(_wanted(wanted), [html.picture_hash(path) for path in paths]))
        return [
            gr.update(visible=count > 1 or bool(saved) or bool(text.strip())),
            html.thumbnails(paths, numbers, size, preprocess.Preprocess(fit, position, sharpen), boxes),
            (html.failure(problem) if problem else "") + remark,
            gr.update(visible=count > 0),
        ]

    def whole(self, files: Any, place: Any) -> str:
        """The picture whose thumbnail was clicked, for the page to draw a box on; "" for one that cannot be read."""
        paths = paths_of(files)
        try:
            return html.whole(paths[int(place)])
        except (IPAdapterError, OSError, ValueError, IndexError):
            return ""

    def pad(self, name: str, uri: Any) -> str:
        """A mask of the panel, as its preview and the buttons that change it."""
        return html.pad(name, str(uri or ""))

    # presets

    def preset_names(self) -> list[str]:
        """Those that are saved; none where the folder cannot be read."""
        try:
            return list(self.models.presets().names())
        except OSError:
            return []

    def choose_preset(self, name: Any) -> list[Any]:
        """A remark, and the preset's value of each of KEPT; a name that is only being typed changes nothing."""
        unchanged = [gr.update() for _ in KEPT]
        if not name or name not in self.preset_names():
            return ["", *unchanged]
        try:
            fields = self.models.presets().load(name)
        except IPAdapterError as error:
            return [html.failure(str(error)), *unchanged]
        values = {key: fields.get(key, field.default) for key, field in KEPT.items()}
        return ["", *(value or NO_MODEL if key == "model" else value for key, value in values.items())]

    def save_preset(self, name: Any, *values: Any) -> list[Any]:
        """The presets' list, and a remark."""
        unit = dict(zip(KEPT, values, strict=True))
        unit["model"] = "" if unit["model"] == NO_MODEL else unit["model"]
        try:
            self.models.presets().save(name or "", unit)
        except IPAdapterError as error:
            return [gr.update(), html.failure(str(error))]
        return [gr.update(choices=self.preset_names(), value=name), html.note(f"Saved as {name}.")]

    def delete_preset(self, name: Any) -> list[Any]:
        """The presets' list, and a remark."""
        try:
            self.models.presets().remove(name or "")
        except IPAdapterError as error:
            return [gr.update(), html.failure(str(error))]
        return [gr.update(choices=self.preset_names(), value=None), html.note(f"Deleted {name}.")]

    # the model's file

    def describe(self, model: Any) -> list[Any]:
        """What the file is, and whether the download button shows."""
        info = description(self.models, model)
        offer = bool(info and not info["error"] and not info["encoder_found"] and settings.allow_download())
        label = f"Download {info['encoder']}" if info and offer else "Download"
        return [html.file_info(info), gr.update(visible=offer, value=label)]

    def charts(self, model: Any, *values: Any) -> str:
        """The weight over layers and steps, for the values of SHOWN; the model says how many layers there are."""
        sdxl = is_model(model) and self.models.base(model).startswith("SDXL")
        return charts(dict(zip(SHOWN, values, strict=True)), SDXL if sdxl else SD)

    def download(self, model: Any) -> Iterator[list[Any]]:
        """Downloads the encoder in a thread; the page shows the progress."""
        info = description(self.models, model)
        if info is None or not settings.allow_download():
            yield self.describe(model)
            return
        reports: queue.Queue[tuple[int, int | None] | Exception | None] = queue.Queue()
        threading.Thread(target=self._fetch, args=(info["encoder"], reports), daemon=True).start()
        while isinstance(report := _latest(reports), tuple):
            yield [html.progress(report[0], report[1], info["encoder"]), gr.update(visible=False)]
        shown = self.describe(model)
        yield shown if report is None else [shown[0] + html.failure(str(report)), shown[1]]

    def _fetch(self, name: str, reports: queue.Queue[tuple[int, int | None] | Exception | None]) -> None:
        try:
            self.models.download_encoder(name, lambda done, total: reports.put((done, total)))
        except Exception as error:  # shown in the panel; nothing else sees what a thread raises
            reports.put(error)
        else:
            reports.put(None)


def _latest(reports: queue.Queue[Any]) -> Any:
    """The newest report; waits for one. An end is never skipped, since nothing follows it."""
    report = reports.get()
    while not reports.empty():
        report = reports.get()
    return report


def is_model(model: Any) -> bool:
    """Whether a model is chosen."""
    return isinstance(model, str) and model not in ("", NO_MODEL)


def description(models: Any, model: Any) -> dict[str, Any] | None:
    """``models.describe`` for a chosen model; an unforeseen failure is shown like any other."""
    if not is_model(model):
        return None
    try:
        return dict(models.describe(model))
    except Exception as error:
        return {"title": model, "encoder": "", "encoder_found": False, "error": str(error)}


def paths_of(files: Any) -> list[str]:
    items = [] if files is None else files if isinstance(files, list) else [files]
    return [item.name for item in items]


def _numbers(text: str, count: int) -> tuple[list[float | None], str]:
    try:
        return parse_weights(text, count) if count else [], ""
    except UnitError as error:
        return [None] * count, str(error)


def extended(text: str, present: int, added: int, behind: int = 0) -> str:
    """The weights' text for more pictures, in front of those ``behind``; one that was pasted with enough numbers
    stays."""
    numbers, problem = _numbers(text, present + behind)
    if problem or not present + behind or not text.strip():
        return text
    return _joined([*numbers[:present], *[1.0] * added, *numbers[present:]])


def _without(text: str, count: int, kept: Sequence[int]) -> str:
    numbers, problem = _numbers(text, count)
    return text if problem or not text.strip() else _joined([numbers[i] for i in kept])


def _joined(numbers: Sequence[float | None]) -> str:
    return weights_text([{"weight": 1.0 if number is None else number} for number in numbers])


def _wanted(text: Any) -> list[str]:
    try:
        return list(json.loads(text)) if text else []
    except (TypeError, ValueError):
        return []
