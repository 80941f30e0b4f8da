"""The buttons under the result galleries and in PNG Info that make a picture a reference."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules.ui_components import ToolButton


def register_send_buttons(script_callbacks: Any) -> None:
    """Puts "Send to IP-Adapter" under each result gallery and into PNG Info; to be called once per load of the
    scripts."""
    seen: set[str] = set()

    def after_component(component: Any, **kwargs: Any) -> None:
        name = kwargs.get("elem_id") or ""
        if name == "pnginfo_image":
            seen.add(name)
        if (
            name == "extras_tab" and "pnginfo_image" in seen
        ):  # the last of PNG Info's buttons; others have such ones too
            seen.clear()
            sender = gr.Button("Send to IP-Adapter", elem_id="pnginfo_send_to_ipadapter")
            sender.click(None, [], [], _js="() => ipadapterSend('pnginfo')")
        tab, _, rest = name.partition("_")
        if rest == "send_to_extras" and tab in ("txt2img", "img2img", "extras"):
            button = ToolButton(
                "\U0001f3b4", elem_id=f"{tab}_send_to_ipadapter", tooltip="Send image to IP-Adapter as a reference."
            )
            button.click(None, [], [], _js=f"() => ipadapterSend('{tab}')")

    script_callbacks.on_after_component(after_component)
