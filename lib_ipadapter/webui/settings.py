"""The extension's section in the WebUI's settings."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from ..unit import FITS

SECTION = ("ipadapter", "IP-Adapter")
DEFAULTS: dict[str, Any] = {
    "ipadapter_units": 3,
    "ipadapter_default_fit": "crop",
    "ipadapter_model_folders": "",
    "ipadapter_encoder_folders": "",
    "ipadapter_cached_references": 12,
    "ipadapter_cached_adapters": 2,
    "ipadapter_keep_encoder": True,
    "ipadapter_allow_download": False,
}


def get(name: str) -> Any:
    """A setting's value, its default before the settings are registered or saved."""
    return shared.opts.data.get(name, DEFAULTS[name])


def folders(name: str) -> list[str]:
    """A setting that lists folders, one a line or separated by commas."""
    return [part.strip() for part in str(get(name)).replace("\n", ",").split(",") if part.strip()]


def unit_count() -> int:
    """Units in the panel."""
    return max(1, int(get("ipadapter_units")))


def default_fit() -> str:
    """The default of a unit's ``fit``."""
    return str(get("ipadapter_default_fit"))


def allow_download() -> bool:
    """Whether the panel offers to download encoders."""
    return bool(get("ipadapter_allow_download"))


def register() -> None:
    """For ``on_ui_settings``."""

    def add(name: str, label: str, component: Any = None, args: Any = None, info: str = "") -> None:
        option = shared.OptionInfo(DEFAULTS[name], label, component, args, section=SECTION)
        shared.opts.add_option(name, option.info(info) if info else option)

    add("ipadapter_units", "Units", gr.Slider, {"minimum": 1, "maximum": 10, "step": 1}, "needs a UI reload")
    add(
        "ipadapter_default_fit",
        "Default fit of a reference",
        gr.Radio,
        {"choices": list(FITS)},
        "of the panel after a UI reload, and of API requests that name none",
    )
    add("ipadapter_model_folders", "Further folders with adapter files", info="separated by commas")
    add("ipadapter_encoder_folders", "Further folders with image encoders", info="separated by commas")
    add("ipadapter_cached_references", "References whose features are kept", gr.Slider,
        {"minimum": 0, "maximum": 512, "step": 1}, "up to 2.4 MB each, in RAM")  # fmt: skip
    add("ipadapter_cached_adapters", "Adapters kept open", gr.Slider, {"minimum": 1, "maximum": 8, "step": 1})
    add("ipadapter_keep_encoder", "Keep the image encoder loaded between references", gr.Checkbox,
        info="off: it is read from disk for each new reference and then leaves RAM and VRAM")  # fmt: skip
    add("ipadapter_allow_download", "Offer to download a missing image encoder", gr.Checkbox,
        info="shows a button in the panel; nothing is ever downloaded by itself")  # fmt: skip
