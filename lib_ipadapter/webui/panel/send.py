"""The buttons under the result galleries that make a result a reference."""

from __future__ import annotations

from typing import Any

from modules.ui_components import ToolButton


def register_send_buttons(script_callbacks: Any) -> None:
    """Puts "Send to IP-Adapter" under each result gallery; to be called once per load of the scripts."""

    def after_component(component: Any, **kwargs: Any) -> None:
        tab, _, rest = (kwargs.get("elem_id") or "").partition("_")
        if rest == "send_to_extras" and tab in ("txt2img", "img2img", "extras"):
            tooltip = "Send image to IP-Adapter as a reference."
            button = ToolButton("\U0001f3b4", elem_id=f"{tab}_send_to_ipadapter", tooltip=tooltip)
            button.click(None, [], [], _js=f"() => ipadapterSend('{tab}')")

    script_callbacks.on_after_component(after_component)
