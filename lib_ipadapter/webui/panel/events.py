"""What the panel's events do, apart from how its components are laid out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ...errors import IPAdapterError, UnitError
from ...pictures import preprocess
from ...unit import FIELDS, crops
from ...unit.presets import KEPT
from ...unit.weights import BOTH, SD, SDXL
from .. import settings
from ..describe import FACE_FIELDS
from ..infotext import match
from ..words import worded
from . import faces, html
from .charts import SHOWN, charts
from .references import CLEARED, ReferenceEvents, is_model, masks_of, numbers_of, paths_of, wanted_hashes
from .values import MASKS, NO_MODEL, panel_default

RESET = tuple(f.name for f in FIELDS if f.name not in ("images", "enabled", "box", *CLEARED))
PREPROCESSING = ("fit", "position", "sharpen", "box", "face", "kind")
WHOLE = ("fit", "position")  # how a picture becomes a square; a face is aligned instead
POSING = (
    "model",
    "images",
    "box",
    "face",
    "focus",
    MASKS,
    "pose",
    "pose_from",
    "pose_face",
    "pose_weight",
    "control_model",
)


class UnitEvents:
    """The handlers of one unit. models: what build_panel was given; redraws: whether the tab is img2img."""

    def __init__(self, index: int, models: Any, redraws: bool = False) -> None:
        self.index = index
        self.models = models
        self.redraws = redraws
        self.references = ReferenceEvents(index, models)

    def reset(self) -> list[Any]:
        """As ``clear``, with the defaults of RESET, and no remark."""
        values = (panel_default(field, self.index) for field in FIELDS if field.name in RESET)
        fit = settings.default_fit()
        named = [fit if name == "fit" else value for name, value in zip(RESET, values, strict=True)]
        return [
            *self.references.empty(),
            *(NO_MODEL if name == "model" else v for name, v in zip(RESET, named, strict=True)),
            "",
        ]

    def no_tiles(self) -> str:
        """The tiles of a unit without references: the one that takes them."""
        return html.thumbnails([], [], [], lambda path, box, mask: html.Seen("", ""), redraws=self.redraws)

    def show(
        self, files: Any, weights: Any, model: Any, wanted: Any, saved: Any, combine: Any, distribute: Any,
        masks: Any, *look: Any,
    ) -> list[Any]:  # fmt: skip
        """Tiles as the encoder will see them, and whether they are those of a pasted text. look: the values of
        PREPROCESSING. What needs several references is shown with several; how they combine, where a picture has
        several. What an earlier save or preset had to say goes. A unit with references and no model says so."""
        paths, text, named = paths_of(files), str(weights or ""), list(saved or [])
        count = len(paths) + len(named)
        numbers, problem = numbers_of(text, count)
        fit, position, sharpen, box, face, _ = look
        try:
            boxes = crops.boxes(crops.parse_boxes(box or ""), len(paths))
        except UnitError as error:
            boxes, problem = [None] * len(paths), problem or (worded(error) if paths else "")
        name = (lambda digest: "") if self.models.host.serves_others() else html.known_name
        remark = html.note(match(wanted_hashes(wanted), [html.picture_hash(path) for path in paths], name))
        how = preprocess.Preprocess(fit, position, sharpen)
        return [
            gr.update(visible=distribute != "one per picture" and (count > 1 or combine != "concat")),
            gr.update(visible=count > 1 or distribute != "together"),
            html.thumbnails(
                paths, numbers, boxes, self._see(model, how, face), named, masks_of(masks, len(paths)), self.redraws
            ),
            (html.failure(problem) if problem else "") + remark,
            gr.update(visible=count > 0),
            "",
            "",
            gr.update() if is_model(model) else self._wanting() if count else "",
        ]

    def _wanting(self) -> str:
        return html.wanting([self.models.fits(name) for name in self.models.model_names()])

    def _see(self, model: Any, how: preprocess.Preprocess, face: Any) -> html.See:
        """How a picture is shown: as what the model will get of it."""
        if is_model(model) and self.models.takes_faces(model):
            return lambda path, box, mask: faces.view_or_picture(path, box, face, mask, self.models.faces)
        size = self.models.encoder_size(model) if is_model(model) else 224
        return lambda path, box, mask: html.Seen(html.square(path, size, how, box, mask), "as the encoder sees it")

    def keypoints(self, *given: Any) -> str:
        """The pose that the picture will have, for the values of POSING; "" for an adapter that has none."""
        values = dict(zip(POSING, given, strict=True))
        if not is_model(values["model"]) or not self.models.takes_pose(values["model"]):
            return ""
        return faces.pose(values, paths_of(values["images"]), paths_of(values["pose"]), self.models.faces)

    def composition(self, weight_type: Any) -> Any:
        """The composition weight shows for the types that have one."""
        return gr.update(visible=weight_type in BOTH)

    def region(self, region: Any) -> list[Any]:
        """Which face, and how far around it, shows for region face; the mask, which is for no other, for region
        mask."""
        return [*(gr.update(visible=region == "face") for _ in range(2)), gr.update(visible=region == "mask")]

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
            return [html.failure(worded(error)), *unchanged]
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
            return [gr.update(), html.failure(worded(error))]
        return [gr.update(choices=self.preset_names(), value=name), html.note(f'Saved preset "{name}".')]

    def delete_preset(self, name: Any) -> list[Any]:
        """The presets' list, and a remark. name: None if the user did not want to."""
        if name is None:
            return [gr.update(), ""]
        try:
            self.models.presets().remove(name or "")
        except IPAdapterError as error:
            return [gr.update(), html.failure(worded(error))]
        return [gr.update(choices=self.preset_names(), value=None), html.note(f'Deleted preset "{name}".')]

    # the model's file

    def describe(self, model: Any) -> list[Any]:
        """What the file is, whether the download button shows, and the fields that only face adapters have: their fold,
        WHOLE, which they do not have, and each of FACE_FIELDS. A field of these that goes has its default."""
        info = description(self.models, model)
        if info and not info["error"]:
            self.models.used(model)
        wanted = str(info.get("download", "")) if info and self._offers() else ""
        about = [str((info or {}).get("download_from", ""))]
        if info and wanted == info.get("face_models"):
            about.append(html.NON_COMMERCIAL)
        label = f"Download {wanted} ({'; '.join(filter(None, about))})" if wanted else "Download"
        has = set((info or {}).get("fields", ()))
        whole = [gr.update(visible="face" not in has) for _ in WHOLE]
        shown = [gr.update(visible=True) if name in has else _gone(name) for name in FACE_FIELDS]
        return [
            html.file_info(info),
            gr.update(visible=bool(wanted), value=label),
            gr.update(visible=bool(has)),
            *whole,
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
        if not name or not self._offers():
            yield self.describe(model)
            return
        reports: queue.Queue[tuple[int, int | None] | Exception | None] = queue.Queue()
        threading.Thread(target=self._fetch, args=(name, reports), daemon=True).start()
        while isinstance(report := _latest(reports), tuple):
            rest = [gr.update() for _ in ("fold", *WHOLE, *FACE_FIELDS)]
            yield [html.progress(report[0], report[1], name), gr.update(visible=False), *rest]
        shown = self.describe(model)
        yield shown if report is None else [shown[0] + html.failure(str(report)), *shown[1:]]

    def _offers(self) -> bool:
        return settings.offers_download(self.models.host.serves_others())

    def _fetch(self, name: str, reports: queue.Queue[tuple[int, int | None] | Exception | None]) -> None:
        try:
            self.models.download(name, lambda done, total: reports.put((done, total)))
        except Exception as error:  # shown in the panel; nothing else sees what a thread raises
            reports.put(error)
        else:
            reports.put(None)


def _gone(name: str) -> Any:
    field = next(field for field in FIELDS if field.name == name)
    return gr.update(visible=False, value=None if field.kind == "images" else field.default)


def _latest(reports: queue.Queue[Any]) -> Any:
    """The newest report; waits for one. An end is never skipped, since nothing follows it."""
    report = reports.get()
    while not reports.empty():
        report = reports.get()
    return report


def description(models: Any, model: Any) -> dict[str, Any] | None:
    """``models.describe`` for a chosen model; an unforeseen failure is shown like any other."""
    if not is_model(model):
        return None
    try:
        return dict(models.describe(model))
    except Exception as error:
        return {"title": model, "encoder": "", "encoder_found": False, "error": str(error)}
