"""The panel in txt2img and img2img: an accordion with units as tabs, each unit read off ``unit.FIELDS``.

``build_panel`` runs six times per start when the API is on, so it opens no model file, and whatever the
models raise while it lists models only leaves the list empty.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr
from modules.ui_components import FormRow, InputAccordion, ToolButton

from ...options import Option
from ...unit import FACE, FIELDS
from ...unit.presets import KEPT
from .. import settings
from ..describe import FACE_FIELDS
from .charts import SHOWN
from .components import Handlers, component_of
from .events import POSING, PREPROCESSING, RESET, WHOLE, UnitEvents
from .exchange import bind_exchange
from .files import Files
from .layout import FOLDS, ROWS, SPECS
from .lists import bind_lists
from .paste import Paste
from .references import CLEARED
from .saved import SavedEvents
from .values import MASKS, NO_MODEL, SAVED, WEIGHTS, panel_default, slots, units_from_panel

__all__ = ["Panel", "build_panel", "units_from_panel"]

_QUIET = {"show_progress": False, "queue": False}


@dataclass(frozen=True)
class Panel:
    """The script's components (the flag first, then each unit's) and what a pasted text means for them."""

    components: list[Any]
    infotext_fields: list[tuple[Any, Any]]
    # Empty: "Send to img2img" takes no pictures along, and a unit without them would stop the generation.
    paste_field_names: list[str] = field(default_factory=list)


def build_panel(is_img2img: bool, models: Any) -> Panel:
    """Builds one tab's panel inside the Blocks that is open."""
    root = f"ipadapter_{'img2img' if is_img2img else 'txt2img'}"
    names, count = _listed(models), settings.unit_count()
    with InputAccordion(False, label="IP-Adapter", elem_id=root) as flag:
        notes = gr.HTML("", elem_id=f"{root}_notes")
        with gr.Tabs(elem_id=f"{root}_units"):
            units = []
            for index in range(count):
                with gr.Tab(f"Unit {index + 1}", id=index, elem_id=f"{root}_{index}"):
                    units.append(_UnitPanel(f"{root}_{index}", index, names, models, is_img2img, notes))
        bind_lists(root, units, models)
        bind_exchange(root, units)
    paste = Paste(models, count)
    fields = [(flag, paste.flag), (notes, paste.notes)]
    for unit in units:
        fields += unit.infotext_fields(paste)
    return Panel([flag, *(component for unit in units for component in unit.components())], fields)


def _listed(models: Any) -> list[str]:
    try:
        return list(models.model_names())
    except Exception:  # a raising ui() would take the whole API down; describe() tells when a model is used
        return []


class _UnitPanel:
    """One unit's components: ``inputs`` by slot name (what the script gets), and those around them."""

    def __init__(
        self, prefix: str, index: int, names: Sequence[str], models: Any, is_img2img: bool, notes: Any
    ) -> None:  # fmt: skip
        self.notes = notes  # on a pasted text, of all units
        self.prefix = prefix
        self.index = index
        self.names = names
        self.inputs: dict[str, Any] = {}
        self.pads: dict[str, Any] = {}  # the previews of masks
        self.folds: dict[str, Any] = {}  # by title
        events = UnitEvents(index, models, is_img2img)
        self.events, self.references = Handlers(events), Handlers(events.references)
        self.saved_events = Handlers(SavedEvents(models, is_img2img))
        self._default_fit = settings.default_fit()
        self._build_head()
        self._build_images()
        self._build_model()
        self._build_rows(ROWS)
        self.timing_note = gr.HTML("", elem_id=self._id("timing_note"))
        for fold in FOLDS:
            # Only adapters that take faces show theirs.
            shown = fold.title != FACE
            with gr.Accordion(fold.title, open=False, visible=shown, elem_id=self._id(fold.name)) as built:
                self.folds[fold.title] = built
                self._build_rows(fold.rows)
                if fold.name == "who":
                    self.keypoints = gr.HTML("", elem_id=self._id("keypoints"))
                if fold.name == "fine":
                    self.charts = gr.HTML(self.events.charts(None, *self._shown())[0], elem_id=self._id("charts"))
        self._bind()

    def _build_head(self) -> None:
        with FormRow(elem_classes=["ipadapter-head"]):
            self._build("enabled")
            self.preset = gr.Dropdown(
                self.events.preset_names(), value=None, allow_custom_value=True, elem_id=self._id("preset"),
                label="Preset", tooltip="Settings without images. Type a name and save it, or choose one.",
            )  # fmt: skip
            self.save = ToolButton("\U0001f4be", elem_id=self._id("save_preset"), tooltip="Save the preset")
            self.delete = ToolButton("\U0001f5d1\ufe0f", elem_id=self._id("delete_preset"), tooltip="Delete the preset")
            menu = ToolButton("\u22ef", elem_id=self._id("menu"), tooltip="Copy, swap or reset this unit")
            menu.click(None, [], [], _js=f"() => ipadapterMenu('{self.prefix}')")
            self.reset = self._button("Reset this unit", "reset")
        self.preset_note = gr.HTML("", elem_id=self._id("preset_note"))
        self.preset.do_not_save_to_config = True

    def _build_rows(self, rows: Sequence[Sequence[str]]) -> None:
        for names in rows:
            with FormRow(elem_classes=[f"ipadapter-row-{SPECS[names[0]].kind}"]):
                for name in names:
                    self._build(name)

    def _shown(self) -> list[Any]:
        """What the charts show of a fresh panel."""
        return [panel_default(field, self.index) for field in FIELDS if field.name in SHOWN]

    def _id(self, name: str) -> str:
        return f"{self.prefix}_{name.replace(' ', '_')}"

    def components(self) -> list[Any]:
        """In the order that units_from_panel reads."""
        return [self.inputs[name] for name in slots()]

    def _build(self, name: str) -> None:
        spec = SPECS[name]
        if spec.kind == "images":
            self.inputs[name] = self._files(f"{spec.label}: {spec.help}", name, visible=True)
        elif spec.kind == "image":
            self._build_pad(spec)
        else:
            # these go with other fields' values, and with several references
            shown = name not in ("composition", "region_face", "grow", "combine", "distribute")
            default = self._default_fit if name == "fit" else panel_default(spec, self.index)
            self.inputs[name] = component_of(spec, default, self._id(name), shown)
        if name in ("enabled", "fit"):
            # Labels are the same in each unit, so ui-config.json keeps one default for all of them: right
            # for weights, wrong for these, which differ by unit and come from the settings.
            self.inputs[name].do_not_save_to_config = True

    def _build_images(self) -> None:
        spec = SPECS["images"]
        with gr.Column(elem_classes=["ipadapter-images"], elem_id=self._id("image_area")):
            gr.HTML(f'<p class="ipadapter-label">{html.escape(spec.label)}</p>')
            # What the user drops goes through the inbox into the hidden list, so that more can follow;
            # javascript/ipadapter.js uploads it and clicks the hidden buttons. The tiles are all that is seen.
            self.inbox = self._files("Drop, paste or browse", "inbox", visible=True)
            self.inputs["images"] = self._files(spec.label, "images", visible=False)
            self.thumbs = gr.HTML(self.events.no_tiles(), elem_id=self._id("thumbnails"))
            self.clear = self._button("Remove all", "clear")
            self.note = gr.HTML("", elem_id=self._id("note"))
            with gr.Accordion("Saved references", open=False, elem_id=self._id("saved")):
                self._build_saved()
            self.inputs[WEIGHTS] = gr.Textbox("", label="Image weights", visible=False, elem_id=self._id(WEIGHTS))
            self.inputs["box"] = gr.Textbox("", label="Crop box", visible=False, elem_id=self._id("box"))
            # Masks are of a picture each; the mask of all is for requests.
            self.inputs[MASKS] = gr.Textbox("", label="Image masks", visible=False, elem_id=self._id(MASKS))
            self.inputs["focus"] = gr.Textbox("", label=SPECS["focus"].label, visible=False, elem_id=self._id("focus"))
            self.wanted = gr.Textbox("", visible=False, elem_id=self._id("wanted"))
            self.adder = self._button("Add", "add")
            self.user = self._button("Use the img2img image", "use_input")
            self.remove = self._button("Remove", "remove")
            self.mover = self._button("Move", "move")
            self.opener = self._button("Choose the part", "open_crop")
            self.opened = gr.Textbox("", visible=False, elem_id=self._id("crop_source"))
        hidden = [self.inputs[name] for name in ("images", WEIGHTS, SAVED, "box", MASKS, "focus")]
        for component in (*hidden, self.inbox, self.wanted, self.title, self.opened):
            component.do_not_save_to_config = True

    def _build_saved(self) -> None:
        with FormRow():
            self.inputs[SAVED] = gr.Dropdown(
                self.saved_events.names(), value=[], multiselect=True, elem_id=self._id(SAVED),
                label="Embeds and folders", info="Used after the images above.",
            )  # fmt: skip
            self.title = gr.Textbox(
                "", label="Save the images as embeds", info="Name", max_lines=1, elem_id=self._id("embeds_name"),
            )  # fmt: skip
            self.keep = ToolButton("\U0001f4be", elem_id=self._id("save_embeds"), tooltip="Save embeds")
            self.drop = ToolButton(
                "\U0001f5d1\ufe0f", elem_id=self._id("delete_embeds"), tooltip="Delete the embeds of that name"
            )
        self.saved_note = gr.HTML("", elem_id=self._id("saved_note"))

    def _files(self, label: str, name: str, visible: bool) -> Any:
        return Files(file_count="multiple", file_types=["image"], label=label, visible=visible, elem_id=self._id(name))

    def _button(self, text: str, name: str) -> Any:
        return gr.Button(text, size="sm", min_width=0, visible=False, elem_id=self._id(name))

    def _build_pad(self, spec: Option) -> None:
        """A mask: a hidden data URI that the mask editor of the page writes, and its preview."""
        with gr.Column(elem_classes=["ipadapter-mask-field"], elem_id=self._id(f"{spec.name}_area")) as self.mask_area:
            gr.HTML(f'<p class="ipadapter-label">{html.escape(spec.label)}: {html.escape(spec.help)}</p>')
            mask = gr.Textbox("", visible=False, label=spec.label, elem_id=self._id(spec.name))
            self.pads[spec.name] = gr.HTML(self.events.pad(spec.name, ""), elem_id=self._id(f"{spec.name}_pad"))
        mask.do_not_save_to_config = True
        self.inputs[spec.name] = mask

    def _build_model(self) -> None:
        with gr.Column(elem_classes=["ipadapter-model"]):
            with FormRow():
                choices = [NO_MODEL, *self.names]
                label = SPECS["model"].label
                model = gr.Dropdown(choices, value=NO_MODEL, label=label, elem_id=self._id("model"))
                self.refresh = ToolButton("\U0001f504", elem_id=self._id("refresh"), tooltip="Model: refresh")
            self.info = gr.HTML("", elem_id=self._id("info"))
            self.download = self._button("Download", "download")
        model.do_not_save_to_config = True
        self.inputs["model"] = model

    def _bind(self) -> None:
        self._bind_pictures()
        self._bind_charts()
        self._bind_masks()
        self._bind_saved()
        self._bind_presets()
        self._bind_model()
        given = self._named(POSING)
        for component in given:
            component.change(self.events.keypoints, given, [self.keypoints], **_QUIET)

    def _named(self, names: Iterable[str]) -> list[Any]:
        return [self.inputs[name] for name in names]

    @property
    def showing(self) -> dict[str, Any]:
        """The event's function, inputs and outputs that draw the tiles again."""
        given = [*self._named(("images", WEIGHTS, "model")), self.wanted, self.inputs[SAVED]]
        given += self._named(("combine", "distribute", MASKS, *PREPROCESSING))
        drawn = [*self._named(("combine", "distribute")), self.thumbs, self.note, self.clear]
        drawn += [self.saved_note, self.preset_note, self.info]
        return {"fn": self.events.show, "inputs": given, "outputs": drawn, **_QUIET}

    def _bind_pictures(self) -> None:
        files, weights, saved, enabled, box, masks, model = self._named(
            ("images", WEIGHTS, SAVED, "enabled", "box", MASKS, "model")
        )
        held = [files, weights, saved, box, masks]  # what belongs to the references
        added = self.adder.click(
            self.references.add,
            [self.inbox, *held, model],
            [*held, enabled, model],
            _js="ipadapterAdding",
            **_QUIET,
        )
        emptied = [*held, enabled, *self._named(CLEARED), self.wanted, self.notes]
        cleared = self.clear.click(self.references.empty, [], emptied, **_QUIET)
        removed = self.remove.click(
            self.references.remove, [*held, self.wanted], [*held, enabled], _js="ipadapterPlace", **_QUIET
        )
        moved = self.mover.click(self.references.move, [*held, self.wanted], held, _js="ipadapterPlace", **_QUIET)
        chosen = saved.select(self.saved_events.choose, [weights, saved, files], [weights, enabled], **_QUIET)
        before = gr.State([])  # the saved references before a change
        dropped = saved.change(self.saved_events.dropped, [before, files, weights, saved], [before, weights], **_QUIET)
        used = self.user.click(
            self.references.use_input, [weights, saved, files, model], [weights, saved, enabled, model], **_QUIET
        )
        edited = (dropped.then, box.change, masks.change)
        edited += tuple(x.change for x in self._named(("combine", "distribute")))
        edited += tuple(x.change for x in self._named(PREPROCESSING))
        found = self.wanted.change(self.references.find, [self.wanted, files, masks], [files, masks], **_QUIET)
        for changed in (added, removed, moved, used):
            changed.then(**self.showing).then(None, [], [], _js=f"() => ipadapterDrawn('{self.prefix}')")
        for event in (cleared.then, chosen.then, *edited, found.then):
            event(**self.showing)
        self.opener.click(
            self.events.whole, [files, self.opened], [self.opened], _js="ipadapterCropping", **_QUIET
        ).then(None, [self.opened], [], _js="ipadapterCrop")
        settings_ = self._named(RESET)
        self.reset.click(self.events.reset, [], [*emptied, *settings_, self.preset_note], **_QUIET).then(**self.showing)

    def _bind_charts(self) -> None:
        given = self._named(("model", *SHOWN))
        for component in given:
            component.change(self.events.charts, given, [self.charts, self.timing_note], **_QUIET)
        kind = self.inputs["weight_type"]
        kind.change(self.events.composition, [kind], [self.inputs["composition"]], **_QUIET)
        region = self.inputs["region"]
        shown = [*self._named(("region_face", "grow")), self.mask_area]
        region.change(self.events.region, [region], shown, **_QUIET)

    def _bind_masks(self) -> None:
        for name, pad in self.pads.items():
            mask = self.inputs[name]
            mask.change(partial(self.events.pad, name), [mask], [pad], **_QUIET)

    def _bind_saved(self) -> None:
        given = [self.title, *self._named(("images", WEIGHTS, SAVED, "model", MASKS, *PREPROCESSING))]
        kept = self.keep.click(self.saved_events.save, given, [self.saved_note], _js="ipadapterKeepingEmbeds", **_QUIET)
        deleted = self.drop.click(
            self.saved_events.delete, [self.title], [self.saved_note], _js="ipadapterDeletingEmbeds", **_QUIET
        )
        for event in (kept, deleted):
            event.then(None, [], [], _js="ipadapterListed")

    def _bind_presets(self) -> None:
        fields, listed = self._named(KEPT), [self.preset, self.preset_note]
        self.preset.select(self.events.choose_preset, [self.preset], [self.preset_note, *fields], **_QUIET)
        saved = self.save.click(
            self.events.save_preset, [self.preset, *fields], listed, _js="ipadapterKeepingPreset", **_QUIET
        )
        deleted = self.delete.click(
            self.events.delete_preset, [self.preset], listed, _js="ipadapterDeletingPreset", **_QUIET
        )
        for event in (saved, deleted):
            event.then(None, [], [], _js="ipadapterListed")

    @property
    def described(self) -> list[Any]:
        """What ``UnitEvents.describe`` sets."""
        return [self.info, self.download, self.folds[FACE], *self._named((*WHOLE, *FACE_FIELDS))]

    def _bind_model(self) -> None:
        model = self.inputs["model"]
        model.change(self.events.describe, [model], self.described, **_QUIET).then(**self.showing)
        self.download.click(self.events.download, [model], self.described, show_progress=False)

    def infotext_fields(self, paste: Paste) -> Iterator[tuple[Any, Any]]:
        """What a pasted text sets in this unit: all but the pictures."""
        for spec in FIELDS:
            if spec.in_infotext and spec.kind not in ("image", "images"):
                component = self.inputs[spec.name]
                yield component, paste.field(spec, self.index, component)
        yield self.inputs[SAVED], paste.saved(self.index, self.inputs[SAVED])
        yield self.inputs[WEIGHTS], paste.weights(self.index)
        yield self.wanted, paste.wanted(self.index)
