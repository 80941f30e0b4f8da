"""Ties the room together for scripts/ip_adapter.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import api, settings
from .hosts import choose
from .infotext import TITLE
from .lifecycle import Lifecycle
from .models import Models
from .panel.panel import Panel, build_panel
from .panel.send import register_send_buttons
from .request import requested_units
from .train.tab import Tab
from .xyz import add_axes

__all__ = ["TITLE", "panel", "register"]

# The WebUI runs the script's file again at each "Reload UI", this module once: caches survive a reload.
_MODELS = Models(choose())


def register(script_callbacks: Any) -> Lifecycle:
    """Registers all callbacks; the WebUI has just cleared those of the last load.

    In a thread of its own: with each callback the WebUI reads its whole call stack (``inspect.stack``), which took
    35 ms where scripts are loaded. A new thread's stack is short.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_register, script_callbacks).result()


def _register(script_callbacks: Any) -> Lifecycle:
    _MODELS.register_archs()
    lifecycle = Lifecycle(_MODELS)
    script_callbacks.on_ui_settings(settings.register)
    script_callbacks.on_ui_tabs(Tab(_MODELS).build)
    script_callbacks.on_app_started(lambda demo, app: api.register(app, _MODELS))
    script_callbacks.on_cfg_denoiser(lifecycle.on_cfg_denoiser)
    for end_of_step in ("on_cfg_denoised", "on_cfg_after_cfg"):  # Forge calls only the second; Neo has no first
        if hasattr(script_callbacks, end_of_step):
            getattr(script_callbacks, end_of_step)(lifecycle.on_cfg_denoised)
    script_callbacks.on_script_unloaded(_MODELS.release)
    # Now where the plot is loaded already, as the WebUI's own scripts are: without a page (--nowebui) the API lists
    # the axes before the callback comes.
    _add_axes()
    script_callbacks.on_before_ui(_add_axes)
    register_send_buttons(script_callbacks)
    return lifecycle


def _add_axes() -> None:
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid"):
            add_axes(data.module, _MODELS, _units_of)


def _units_of(p: Any) -> list[dict[str, Any]]:
    """The unit objects that ``p`` was given for our script."""
    for script in p.scripts.alwayson_scripts:
        if script.title() == TITLE:
            return requested_units(p.script_args[script.args_from : script.args_to])
    return []


def panel(is_img2img: bool) -> Panel:
    """The components of one tab."""
    return build_panel(is_img2img, _MODELS)
