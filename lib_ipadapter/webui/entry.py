"""Ties the room together for scripts/ip_adapter.py."""

from __future__ import annotations

from typing import Any

from . import api, settings
from .host import Host
from .script import Lifecycle
from .ui import Panel, build_panel, register_send_buttons

# The WebUI runs the script's file again at each "Reload UI", this module once: caches survive a reload.
_HOST = Host()


def register(script_callbacks: Any) -> Lifecycle:
    """Registers all callbacks; the WebUI has just cleared those of the last load."""
    _HOST.register_archs()
    lifecycle = Lifecycle(_HOST)
    script_callbacks.on_ui_settings(settings.register)
    script_callbacks.on_app_started(lambda demo, app: api.register(app, _HOST))
    script_callbacks.on_cfg_denoiser(lifecycle.on_cfg_denoiser)
    script_callbacks.on_cfg_denoised(lifecycle.on_cfg_denoised)
    script_callbacks.on_script_unloaded(_HOST.release)
    register_send_buttons(script_callbacks)
    return lifecycle


def panel(is_img2img: bool) -> Panel:
    """The components of one tab."""
    return build_panel(is_img2img, _HOST)
