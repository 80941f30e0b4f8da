"""The panel in txt2img and img2img: an accordion with units as tabs, each unit read off ``unit.FIELDS``.

``build_panel`` runs six times per start when the API is on, so it opens no model file, and whatever the
models raise while it lists models only leaves the list empty.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import gradio as gr
from modules.ui_components import FormRow, InputAccordion, ToolButton

from ...options import Option
from ...unit import FIELDS, LAYERS, PREPROCESS, REGION, SCRIPTS
from ...unit.presets import KEPT
from .. import settings
from .charts import SHOWN
from .events import CLEARED, PREPROCESSING, UnitEvents
from .files import Files
from .paste import Paste
from .saved import SavedEvents
from .values import NO_MODEL, SAVED, WEIGHTS, panel_default, slots, units_from_panel

__all__ = ["Panel", "build_panel", "register_send_buttons", "units_from_panel"]

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
                    units.append(_UnitPanel(f"{root}_{index}", index, names, models))
    _refresh_all(units, models)
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

    def __init__(self, prefix: str, index: int, names: Sequence[str], models: Any) -> None:
        self.prefix = prefix
        self.index = index
        self.names = names
        self.inputs: dict[str, Any] = {}
        self.pads: dict[str, Any] = {}  # the previews of masks
        self.events = UnitEvents(index, models)
        self.saved_events = SavedEvents(models)
        self._default_fit = settings.default_fit()
        with FormRow():
            self.preset = gr.Dropdown(
                self.events.preset_names(), value=None, allow_custom_value=True, elem_id=self._id("preset"),
                label="Preset", info="Choose one, or type a name to save this unit's settings under.",
            )  # fmt: skip
            self.save = ToolButton("\U0001f4be", elem_id=self._id("save_preset"), tooltip="Preset: save")
            self.delete = ToolButton("\U0001f5d1\ufe0f", elem_id=self._id("delete_preset"), tooltip="Preset: delete")
        self.preset_note = gr.HTML("", elem_id=self._id("preset_note"))
        self.preset.do_not_save_to_config = True
        for name, group in groupby(FIELDS, key=lambda field: field.group):
            if name:
                with gr.Accordion(name, open=False, elem_id=self._id(_FOLDS[name])):
                    self._build_rows(group)
                    if name == LAYERS:
                        shown = self.events.charts(None, *self._shown())
                        self.charts = gr.HTML(shown, elem_id=self._id("charts"))
            else:
                self._build_rows(group)
        self._bind()

    def _build_rows(self, fields: Iterable[Option]) -> None:
        for kind, row in groupby(fields, key=lambda field: field.kind):
            with FormRow(elem_classes=[f"ipadapter-row-{kind}"]):
                for field in row:
                    self._build(field)

    def _shown(self) -> list[Any]:
        """What the charts show of a fresh panel."""
        return [panel_default(field, self.index) for field in FIELDS if field.name in SHOWN]

    def _id(self, name: str) -> str:
        return f"{self.prefix}_{name.replace(' ', '_')}"

    def components(self) -> list[Any]:
        """In the order that units_from_panel reads."""
        return [self.inputs[name] for name in slots()]

    def _build(self, spec: Option) -> None:
        if spec.name == "images":
            self._build_images(spec)
        elif spec.kind == "images":
            self.inputs[spec.name] = self._files(f"{spec.label}: {spec.help}", spec.name, visible=True)
        elif spec.name == "model":
            self._build_model(spec)
        elif spec.kind == "image":
            self._build_pad(spec)
        else:
            many = spec.kind == "choice" and len(spec.choices) > _RADIO
            self.inputs[spec.name] = (gr.Dropdown if many else _BUILDERS[spec.kind])(
                label=spec.label, elem_id=self._id(spec.name), **self._value_and_range(spec)
            )
        if spec.name in ("enabled", "fit"):
            # Labels are the same in each unit, so ui-config.json keeps one default for all of them: right
            # for weights, wrong for these, which differ by unit and come from the settings.
            self.inputs[spec.name].do_not_save_to_config = True

    def _value_and_range(self, spec: Option) -> dict[str, Any]:
        value = self._default_fit if spec.name == "fit" else panel_default(spec, self.index)
        args: dict[str, Any] = {"value": value}
        if spec.kind == "number":
            args |= {"minimum": spec.minimum, "maximum": spec.maximum, "step": spec.step}
        if spec.kind == "choice":
            args |= {"choices": list(spec.choices)}
        # A slider has no room for a line of help: it shows on hover, as the WebUI's own do.
        return args | ({"info": spec.help} if spec.kind in ("choice", "string", "text") else {"tooltip": spec.help})

    def _build_images(self, spec: Option) -> None:
        with gr.Column(elem_classes=["ipadapter-images"], elem_id=self._id("image_area")):
            # What the user drops goes through the drop zone into the hidden list, so that more can follow;
            # javascript/ipadapter.js uploads it and clicks the hidden buttons.
            self.inbox = self._files(f"{spec.label}: drop, paste or choose", "inbox", visible=True)
            self.inputs[spec.name] = self._files(spec.label, spec.name, visible=False)
            self.thumbs = gr.HTML("", elem_id=self._id("thumbnails"))
            with FormRow():
                self.inputs[SAVED] = gr.Dropdown(
                    self.saved_events.names(), value=[], multiselect=True, elem_id=self._id(SAVED),
                    label="Saved references", info="Embeds, and folders of pictures; behind the pictures above.",
                )  # fmt: skip
                self.title = gr.Textbox(
                    "", label="Save as embeds", info="A name for these references.", max_lines=1,
                    elem_id=self._id("embeds_name"),
                )  # fmt: skip
                self.keep = ToolButton("\U0001f4be", elem_id=self._id("save_embeds"), tooltip="Embeds: save")
                self.drop = ToolButton("\U0001f5d1\ufe0f", elem_id=self._id("delete_embeds"), tooltip="Embeds: delete")
            self.saved_note = gr.HTML("", elem_id=self._id("saved_note"))
            self.inputs[WEIGHTS] = gr.Textbox(
                "", label="Image weights", placeholder='all 1; or one each: "1, 0.5"', visible=False,
                max_lines=1, elem_id=self._id(WEIGHTS))  # fmt: skip
            self.clear = self._button("Clear", "clear")
            self.note = gr.HTML("", elem_id=self._id("note"))
            self.wanted = gr.Textbox("", visible=False, elem_id=self._id("wanted"))
            self.adder = self._button("Add", "add")
            self.remove = self._button("Remove", "remove")
            self.opener = self._button("Choose the part", "open_crop")
            self.opened = gr.Textbox("", visible=False, elem_id=self._id("crop_source"))
        hidden = [self.inputs[name] for name in (spec.name, WEIGHTS, SAVED)]
        for component in (*hidden, self.inbox, self.wanted, self.title, self.opened):
            component.do_not_save_to_config = True

    def _files(self, label: str, name: str, visible: bool) -> Any:
        return Files(file_count="multiple", file_types=["image"], label=label, visible=visible, elem_id=self._id(name))

    def _button(self, text: str, name: str) -> Any:
        return gr.Button(text, size="sm", min_width=0, visible=False, elem_id=self._id(name))

    def _build_pad(self, spec: Option) -> None:
        """A mask: a hidden data URI that the mask editor of the page writes, and its preview."""
        with gr.Column():
            gr.HTML(f'<p class="ipadapter-label">{html.escape(spec.label)}: {html.escape(spec.help)}</p>')
            mask = gr.Textbox("", visible=False, label=spec.label, elem_id=self._id(spec.name))
            self.pads[spec.name] = gr.HTML(self.events.pad(spec.name, ""), elem_id=self._id(f"{spec.name}_pad"))
        mask.do_not_save_to_config = True
        self.inputs[spec.name] = mask

    def _build_model(self, spec: Option) -> None:
        with gr.Column(elem_classes=["ipadapter-model"]):
            with FormRow():
                choices = [NO_MODEL, *self.names]
                model = gr.Dropdown(choices, value=NO_MODEL, label=spec.label, elem_id=self._id("model"))
                self.refresh = ToolButton("\U0001f504", elem_id=self._id("refresh"), tooltip="Model: refresh")
            self.info = gr.HTML("", elem_id=self._id("info"))
            self.download = self._button("Download", "download")
        model.do_not_save_to_config = True
        self.inputs[spec.name] = model

    def _bind(self) -> None:
        self._bind_pictures()
        self._bind_charts()
        self._bind_masks()
        self._bind_saved()
        self._bind_presets()
        self._bind_model()

    def _named(self, names: Iterable[str]) -> list[Any]:
        return [self.inputs[name] for name in names]

    @property
    def _showing(self) -> dict[str, Any]:
        """The event's function, inputs and outputs that draw the thumbnails again."""
        given = [
            *self._named(("images", WEIGHTS, "model")),
            self.wanted,
            self.inputs[SAVED],
            *self._named(PREPROCESSING),
        ]
        drawn = [self.inputs[WEIGHTS], self.thumbs, self.note, self.clear]
        return {"fn": self.events.show, "inputs": given, "outputs": drawn, **_QUIET}

    def _bind_pictures(self) -> None:
        files, weights, saved, enabled = self._named(("images", WEIGHTS, SAVED, "enabled"))
        changed = [files, weights, enabled]
        added = self.adder.click(
            self.events.add, [self.inbox, files, weights, saved], changed, _js="ipadapterAdding", **_QUIET
        )
        added.then(None, [], [], _js="ipadapterAdded")
        cleared = self.clear.click(self.events.clear, [], [*changed, saved, *self._named(CLEARED)], **_QUIET)
        removed = self.remove.click(
            self.events.remove,
            [files, weights, saved, self.wanted],
            changed,
            _js="ipadapterRemoval",
            **_QUIET,
        )
        chosen = saved.select(self.saved_events.choose, [weights, saved, files], [weights, enabled], **_QUIET)
        edited = (weights.blur, weights.submit, saved.change, *(x.change for x in self._named(PREPROCESSING)))
        for event in (added.then, cleared.then, removed.then, chosen.then, *edited, self.wanted.change):
            event(**self._showing)
        self.opener.click(
            self.events.whole, [files, self.opened], [self.opened], _js="ipadapterCropping", **_QUIET
        ).then(None, [self.opened], [], _js="ipadapterCrop")

    def _bind_charts(self) -> None:
        given = self._named(("model", *SHOWN))
        for component in given:
            component.change(self.events.charts, given, [self.charts], **_QUIET)

    def _bind_masks(self) -> None:
        for name, pad in self.pads.items():
            mask = self.inputs[name]
            mask.change(partial(self.events.pad, name), [mask], [pad], **_QUIET)

    def _bind_saved(self) -> None:
        given = [self.title, *self._named(("images", WEIGHTS, SAVED, "model", "focus", *PREPROCESSING))]
        listed = [self.inputs[SAVED], self.saved_note]
        self.keep.click(self.saved_events.save, given, listed, **_QUIET)
        self.drop.click(self.saved_events.delete, [self.title], listed, **_QUIET)

    def _bind_presets(self) -> None:
        fields, listed = self._named(KEPT), [self.preset, self.preset_note]
        self.preset.select(self.events.choose_preset, [self.preset], [self.preset_note, *fields], **_QUIET)
        self.save.click(self.events.save_preset, [self.preset, *fields], listed, **_QUIET)
        self.delete.click(self.events.delete_preset, [self.preset], listed, **_QUIET)

    def _bind_model(self) -> None:
        model, described = self.inputs["model"], [self.info, self.download]
        model.change(self.events.describe, [model], described, **_QUIET).then(**self._showing)
        self.download.click(self.events.download, [model], described, show_progress=False)

    def infotext_fields(self, paste: Paste) -> Iterator[tuple[Any, Any]]:
        """What a pasted text sets in this unit: all but the pictures."""
        for spec in FIELDS:
            if spec.in_infotext and spec.kind not in ("image", "images"):
                component = self.inputs[spec.name]
                yield component, paste.field(spec, self.index, component)
        yield self.inputs[SAVED], paste.saved(self.index, self.inputs[SAVED])
        yield self.inputs[WEIGHTS], paste.weights(self.index)
        yield self.wanted, paste.wanted(self.index)


_BUILDERS: dict[str, Any] = {
    "bool": gr.Checkbox,
    "number": gr.Slider,
    "choice": gr.Radio,
    "string": gr.Textbox,
    "text": gr.Textbox,
}
_FOLDS = {PREPROCESS: "look", LAYERS: "fine", REGION: "where", SCRIPTS: "follow"}
_RADIO = 4  # choices at most; more are a dropdown


def _refresh_all(units: Sequence[_UnitPanel], models: Any) -> None:
    """Any unit's refresh button lists models and saved references for all of them."""
    dropdowns, saved = ([unit.inputs[name] for unit in units] for name in ("model", SAVED))

    def refresh() -> list[Any]:
        models.refresh()
        choices, named = [NO_MODEL, *models.model_names()], units[0].saved_events.names()
        for dropdown in dropdowns:
            dropdown.choices = choices  # what a page that is loaded later gets
        for dropdown in saved:
            dropdown.choices = named
        return [*(gr.update(choices=choices) for _ in dropdowns), *(gr.update(choices=named) for _ in saved)]

    for unit in units:
        unit.refresh.click(refresh, [], [*dropdowns, *saved], show_progress=False).then(
            unit.events.describe, [unit.inputs["model"]], [unit.info, unit.download], **_QUIET
        )


def register_send_buttons(script_callbacks: Any) -> None:
    """Puts "Send to IP-Adapter" under each result gallery; to be called once per load of the scripts."""

    def after_component(component: Any, **kwargs: Any) -> None:
        tab, _, rest = (kwargs.get("elem_id") or "").partition("_")
        if rest == "send_to_extras" and tab in ("txt2img", "img2img", "extras"):
            tooltip = "Send image to IP-Adapter as a reference."
            button = ToolButton("\U0001f4ce", elem_id=f"{tab}_send_to_ipadapter", tooltip=tooltip)
            button.click(None, [], [], _js=f"() => ipadapterSend('{tab}')")

    script_callbacks.on_after_component(after_component)
