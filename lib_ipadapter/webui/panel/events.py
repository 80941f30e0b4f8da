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
from ...unit.fields import parse_weight
from ...unit.presets import KEPT
from ...unit.weights import BOTH, SD, SDXL
from .. import settings
from ..describe import FACE_FIELDS
from ..infotext import match, weights_text
from . import faces, html
from .charts import SHOWN, charts
from .values import NO_MODEL, panel_default, parse_weights

CLEARED = ("negative", "focus", "mask")  # go with the references that they belong to
RESET = tuple(f.name for f in FIELDS if f.name not in ("images", "enabled", "box", *CLEARED))
PREPROCESSING = ("fit", "position", "sharpen", "box", "face", "kind")
_ENABLED = next(field for field in FIELDS if field.name == "enabled")


class UnitEvents:
    """The handlers of one unit. ``models`` is what build_panel was given."""

    def __init__(self, index: int, models: Any) -> None:
        self.index = index
        self.models = models

    # pictures: ``files`` are gradio's file objects. Each change is followed by ``show``. What belongs to the references
    # (files, weights, saved, box) is kept in step: weights and boxes are texts with a part for each.

    def add(self, new: Any, files: Any, weights: Any, saved: Any, box: Any, model: Any) -> list[Any]:
        """Pictures from the drop zone go behind those at hand; the unit is switched on, and has a model if one is
        near."""
        present, added = paths_of(files), paths_of(new)
        named = list(saved or [])
        return [
            present + added,
            extended(str(weights or ""), len(present), len(added), len(named)),
            named,
            _boxes_of(box, len(present), [*range(len(present)), *[None] * len(added)]),
            True,
            model if is_model(model) else (self.models.suggested() or NO_MODEL),
        ]

    def remove(self, files: Any, weights: Any, saved: Any, box: Any, place: Any) -> list[Any]:
        """Takes one reference out, by its place; only the first unit stays on without any."""
        paths, named = paths_of(files), list(saved or [])
        places = [i for i in range(len(paths) + len(named)) if str(i) != str(place)]
        if not places:
            return self.clear()[:5]
        kept = [i for i in places if i < len(paths)]
        return [
            [paths[i] for i in kept] or None,
            without(str(weights or ""), len(paths) + len(named), places),
            [named[i - len(paths)] for i in places if i >= len(paths)],
            _boxes_of(box, len(paths), kept),
            gr.update(),
        ]

    def move(self, files: Any, weights: Any, saved: Any, box: Any, places: Any) -> list[Any]:
        """Puts a picture at another's place. places: "from,to"."""
        paths, named = paths_of(files), list(saved or [])
        order = list(range(len(paths)))
        try:
            source, target = (int(part) for part in str(places).split(","))
            order.insert(target, order.pop(source))
        except (ValueError, IndexError):
            return [gr.update() for _ in range(4)]
        everything = [*order, *range(len(paths), len(paths) + len(named))]
        return [
            [paths[i] for i in order],
            without(str(weights or ""), len(everything), everything),
            named,
            _boxes_of(box, len(paths), order),
        ]

    def clear(self) -> list[Any]:
        """Takes all references out, with what belongs to them: values of images, their weights, saved references,
        boxes, enabled, and CLEARED."""
        cleared = (None if name == "negative" else "" for name in CLEARED)
        return [None, "", [], "", panel_default(_ENABLED, self.index), *cleared]

    def reset(self) -> list[Any]:
        """As ``clear``, with the defaults of RESET, and no remark."""
        values = (panel_default(field, self.index) for field in FIELDS if field.name in RESET)
        fit = settings.default_fit()
        named = [fit if name == "fit" else value for name, value in zip(RESET, values, strict=True)]
        return [*self.clear(), *(NO_MODEL if name == "model" else v for name, v in zip(RESET, named, strict=True)), ""]

    def no_tiles(self) -> str:
        """The tiles of a unit without references: the one that takes them."""
        return html.thumbnails([], [], [], lambda path, box: html.Seen("", ""))

    def show(
        self, files: Any, weights: Any, model: Any, wanted: Any, saved: Any, combine: Any, distribute: Any,
        focus: Any, *look: Any,
    ) -> list[Any]:  # fmt: skip
        """Tiles as the encoder will see them, and whether they are those of a pasted text. look: the values of
        PREPROCESSING. What needs several references is shown with several."""
        paths, text, named = paths_of(files), str(weights or ""), list(saved or [])
        count = len(paths) + len(named)
        numbers, problem = _numbers(text, count)
        fit, position, sharpen, box, face, _ = look
        try:
            boxes = crops.boxes(crops.parse_boxes(box or ""), len(paths))
        except UnitError as error:
            boxes, problem = [None] * len(paths), problem or (str(error) if paths else "")
        remark = html.note(match(_wanted(wanted), [html.picture_hash(path) for path in paths], html.known_name))
        how = preprocess.Preprocess(fit, position, sharpen)
        return [
            gr.update(visible=count > 1 or combine != "concat"),
            gr.update(visible=count > 1 or distribute != "together"),
            html.thumbnails(paths, numbers, boxes, self._see(model, how, face, str(focus or "")), named),
            (html.failure(problem) if problem else "") + remark,
            gr.update(visible=count > 0),
        ]

    def _see(self, model: Any, how: preprocess.Preprocess, face: Any, focus: str) -> html.See:
        """How a picture is shown: as what the model will get of it. focus: the reference mask, a data URI."""
        if is_model(model) and self.models.takes_faces(model):
            return lambda path, box: faces.view(path, box, face, focus, self.models.faces)
        size = self.models.encoder_size(model) if is_model(model) else 224
        return lambda path, box: html.Seen(html.square(path, size, how, box, focus), "as the encoder sees it")

    def composition(self, weight_type: Any) -> Any:
        """The composition weight shows for the types that have one."""
        return gr.update(visible=weight_type in BOTH)

    def region(self, region: Any) -> list[Any]:
        """Which face, and how far around it, shows for region face."""
        return [gr.update(visible=region == "face") for _ in range(2)]

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
        """The presets' list, and a remark. name: None if the user did not want to."""
        if name is None:
            return [gr.update(), ""]
        unit = dict(zip(KEPT, values, strict=True))
        unit["model"] = "" if unit["model"] == NO_MODEL else unit["model"]
        try:
            self.models.presets().save(name or "", unit)
        except IPAdapterError as error:
            return [gr.update(), html.failure(str(error))]
        return [gr.update(choices=self.preset_names(), value=name), html.note(f'Saved preset "{name}".')]

    def delete_preset(self, name: Any) -> list[Any]:
        """The presets' list, and a remark. name: None if the user did not want to."""
        if name is None:
            return [gr.update(), ""]
        try:
            self.models.presets().remove(name or "")
        except IPAdapterError as error:
            return [gr.update(), html.failure(str(error))]
        return [gr.update(choices=self.preset_names(), value=None), html.note(f'Deleted preset "{name}".')]

    # the model's file

    def describe(self, model: Any) -> list[Any]:
        """What the file is, whether the download button shows, and the fields that only face adapters have: their fold,
        and each of FACE_FIELDS. A field that goes has its default."""
        info = description(self.models, model)
        if info and not info["error"]:
            self.models.used(model)
        wanted = str(info.get("download", "")) if info and settings.allow_download() else ""
        terms = f" ({html.NON_COMMERCIAL})" if info and wanted == info.get("face_models") else ""
        label = f"Download {wanted}{terms}".strip()
        has = set((info or {}).get("fields", ()))
        shown = [gr.update(visible=True) if name in has else _gone(name) for name in FACE_FIELDS]
        return [
            html.file_info(info),
            gr.update(visible=bool(wanted), value=label),
            gr.update(visible=bool(has)),
            *shown,
        ]

    def charts(self, model: Any, *values: Any) -> list[str]:
        """The weight over layers and steps, for the values of SHOWN, and a remark on weight, start and end; the model
        says how many layers there are."""
        sdxl = is_model(model) and self.models.base(model).startswith("SDXL")
        return list(charts(dict(zip(SHOWN, values, strict=True)), SDXL if sdxl else SD))

    def download(self, model: Any) -> Iterator[list[Any]]:
        """Downloads the encoder, or the face models, in a thread; the page shows the progress."""
        name = str((description(self.models, model) or {}).get("download", ""))
        if not name or not settings.allow_download():
            yield self.describe(model)
            return
        reports: queue.Queue[tuple[int, int | None] | Exception | None] = queue.Queue()
        threading.Thread(target=self._fetch, args=(name, reports), daemon=True).start()
        while isinstance(report := _latest(reports), tuple):
            rest = [gr.update() for _ in ("fold", *FACE_FIELDS)]
            yield [html.progress(report[0], report[1], name), gr.update(visible=False), *rest]
        shown = self.describe(model)
        yield shown if report is None else [shown[0] + html.failure(str(report)), *shown[1:]]

    def _fetch(self, name: str, reports: queue.Queue[tuple[int, int | None] | Exception | None]) -> None:
        try:
            self.models.download(name, lambda done, total: reports.put((done, total)))
        except Exception as error:  # shown in the panel; nothing else sees what a thread raises
            reports.put(error)
        else:
            reports.put(None)


def _gone(name: str) -> Any:
    return gr.update(visible=False, value=next(field.default for field in FIELDS if field.name == name))


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
        numbers = parse_weights(text, count) if count else []
        for i, number in enumerate(numbers):
            if number is not None:
                parse_weight(number, f"weight of image {i + 1}")
        return numbers, ""
    except UnitError as error:
        return [None] * count, str(error)


def extended(text: str, present: int, added: int, behind: int = 0) -> str:
    """The weights' text for more pictures, in front of those ``behind``; one that was pasted with enough numbers
    stays."""
    numbers, problem = _numbers(text, present + behind)
    if problem or not present + behind or not text.strip():
        return text
    return _joined([*numbers[:present], *[1.0] * added, *numbers[present:]])


def without(text: str, count: int, kept: Sequence[int]) -> str:
    """The weights' text of ``count`` references with the numbers at these places; another one stays."""
    numbers, problem = _numbers(text, count)
    return text if problem or not text.strip() else _joined([numbers[i] for i in kept])


def _boxes_of(text: Any, count: int, places: Sequence[int | None]) -> str:
    """The boxes' text for the pictures at these places of ``count``; None: a new one, which is whole. A text that was
    pasted before its pictures stays."""
    try:
        boxes = crops.boxes(crops.parse_boxes(text or ""), count)
    except UnitError:
        return str(text or "")
    if count == 0:
        return str(text or "")
    parts = ["" if i is None or (box := boxes[i]) is None else ", ".join(f"{x:g}" for x in box) for i in places]
    return "; ".join(parts) if any(parts) else ""


def _joined(numbers: Sequence[float | None]) -> str:
    return weights_text([{"weight": 1.0 if number is None else number} for number in numbers])


def _wanted(text: Any) -> list[str]:
    try:
        return list(json.loads(text)) if text else []
    except (TypeError, ValueError):
        return []
