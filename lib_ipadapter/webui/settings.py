"""The extension's section in the WebUI's settings."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from ..encoders.source import Keep
from ..unit import FITS
from . import stored

MOST_UNITS = 10
_MOST_MB = 1 << 20
STAYS: dict[str, Keep] = {"in VRAM": "device", "in RAM": "memory", "nowhere": "nothing"}
SECTION = ("ipadapter", "IP-Adapter")
DEFAULTS: dict[str, Any] = {
    "ipadapter_units": 3,
    "ipadapter_default_fit": "crop",
    "ipadapter_model_folders": "",
    "ipadapter_encoder_folders": "",
    "ipadapter_face_folders": "",
    "ipadapter_cache_mb": 256,
    "ipadapter_projected_mb": 64,
    "ipadapter_cached_adapters": 3,
    "ipadapter_encoder_stays": "in RAM",
    "ipadapter_control_stays": "in RAM",
    "ipadapter_offer_download": stored.OFFERS[0],
}


def get(name: str) -> Any:
    """A setting's value, its default before the settings are registered or saved."""
    return shared.opts.data.get(name, DEFAULTS[name])


def _number(name: str, low: float, high: float) -> float:
    return stored.number(get(name), DEFAULTS[name], low, high)


def folders(name: str) -> list[str]:
    """A setting that lists folders, one a line or separated by commas."""
    return stored.listed(get(name))


def unit_count() -> int:
    """Units in the panel."""
    return int(_number("ipadapter_units", 1, MOST_UNITS))


def default_fit() -> str:
    """The default of a unit's ``fit``."""
    return stored.one_of(get("ipadapter_default_fit"), DEFAULTS["ipadapter_default_fit"], FITS)


def cache_bytes() -> int:
    """Of features and tokens."""
    return int(_number("ipadapter_cache_mb", 0, _MOST_MB) * 2**20)


def projected_bytes() -> int:
    """Of K' and V'."""
    return int(_number("ipadapter_projected_mb", 0, _MOST_MB) * 2**20)


def cached_adapters() -> int:
    """Adapters that stay open; at least one for each of the panel's units."""
    return max(int(_number("ipadapter_cached_adapters", 1, 1000)), unit_count())


def encoder_stays() -> Keep:
    """Where the encoder stays after encoding; by the checkbox of earlier versions where that was off."""
    if shared.opts.data.get("ipadapter_keep_encoder") is False:
        return "nothing"
    return STAYS.get(str(get("ipadapter_encoder_stays")), "memory")


def control_stays() -> Keep:
    """Where a ControlNet stays after a pass."""
    return STAYS.get(str(get("ipadapter_control_stays")), "memory")


def offers_download(serves_others: bool) -> bool:
    """Whether the panel offers to download what is missing."""
    return stored.offered(
        get("ipadapter_offer_download"), shared.opts.data.get("ipadapter_allow_download"), serves_others
    )


def register() -> None:
    """For ``on_ui_settings``."""

    def add(name: str, label: str, component: Any = None, args: Any = None, info: str = "") -> None:
        option = shared.OptionInfo(DEFAULTS[name], label, component, args, section=SECTION)
        shared.opts.add_option(name, option.info(info) if info else option)

    add("ipadapter_units", "Units", gr.Slider, {"minimum": 1, "maximum": MOST_UNITS, "step": 1}, "needs a UI reload")
    add(
        "ipadapter_default_fit",
        "Default fit of a reference",
        gr.Radio,
        {"choices": list(FITS)},
        "of the panel after a UI reload, and of API requests that name none",
    )
    add("ipadapter_model_folders", "Further folders with adapter files", info="separated by commas")
    add("ipadapter_encoder_folders", "Further folders with image encoders", info="separated by commas")
    add("ipadapter_face_folders", "Further folders with face models", info="InsightFace's packs or their archives; "
        "separated by commas")  # fmt: skip
    add("ipadapter_cache_mb", "Memory for encoded references, MB", gr.Slider,
        {"minimum": 0, "maximum": 4096, "step": 16},
        "in RAM; a reference takes at most 3 MB (PuLID: 12 MB), and a known one is neither decoded nor encoded "
        "again")  # fmt: skip
    add("ipadapter_projected_mb", "Memory for references projected for the UNet, MB", gr.Slider,
        {"minimum": 0, "maximum": 1024, "step": 16},
        "in VRAM, between jobs; a unit with one reference takes 3 to 11 MB")  # fmt: skip
    add("ipadapter_cached_adapters", "Adapters kept open", gr.Slider, {"minimum": 1, "maximum": 16, "step": 1},
        "at least one for each unit")  # fmt: skip
    add("ipadapter_encoder_stays", "After encoding, the image encoder stays", gr.Radio, {"choices": list(STAYS)},
        "in VRAM: fastest for many new references, and takes up to 4 GB while sampling; nowhere: it is read from disk "
        "for new references")  # fmt: skip
    add("ipadapter_control_stays", "After sampling, InstantID's ControlNet stays", gr.Radio, {"choices": list(STAYS)},
        "in VRAM: 2.5 GB, but not with --medvram or --lowvram; nowhere: it is read from disk each time")  # fmt: skip
    add("ipadapter_offer_download", "Offer to download a missing image encoder or face models", gr.Radio,
        {"choices": list(stored.OFFERS)},
        "shows a button in the panel; nothing is ever downloaded by itself")  # fmt: skip
