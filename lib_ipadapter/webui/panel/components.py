"""The gradio component of a field, and the functions behind components."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr

from ...options import Option

_BUILDERS: dict[str, Any] = {
    "bool": gr.Checkbox,
    "number": gr.Slider,
    "choice": gr.Radio,
    "string": gr.Textbox,
    "text": gr.Textbox,
}


def component_of(spec: Option, default: Any, elem_id: str, visible: bool) -> Any:
    """Of a field that is neither pictures nor a picture. Help shows on hover, as the WebUI's own does; a text's says
    how to write it, so it stands below."""
    args: dict[str, Any] = {"value": default, "label": spec.label, "elem_id": elem_id, "visible": visible}
    if spec.kind == "number":
        args |= {"minimum": spec.minimum, "maximum": spec.maximum, "step": spec.step}
    if spec.kind == "choice":
        args |= {"choices": list(spec.choices)}
    if spec.kind in ("string", "text"):
        args |= {"info": spec.help, "lines": 1, "max_lines": 1}
    else:
        args |= {"tooltip": spec.help}
    many = spec.kind == "choice" and spec.name != "region"
    return (gr.Dropdown if many else _BUILDERS[spec.kind])(**args)


class Handlers:
    """The methods of ``work`` without their signatures, which gradio reads at each event that it is told of: some
    hundred times, with the annotations evaluated. Generators stay what they are, as gradio asks for that."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._work, name)
        return method if inspect.isgeneratorfunction(method) else lambda *given: method(*given)
