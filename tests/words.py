"""The texts that the page shows, collected from the code: what localizations/ has to translate.

The WebUI translates whole text nodes and titles, so a text counts as it stands on the page. Left out are choices, which
are names of the API, and texts with values in them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lib_ipadapter.unit import FIELDS
from lib_ipadapter.webui.panel.layout import FOLDS

ROOT = Path(__file__).resolve().parents[1]
PANEL = ROOT / "lib_ipadapter" / "webui" / "panel"
UNITS = 10  # at most
# Arguments that are texts of the page, and calls whose first text is one
_SHOWN, _CALLS = {"label", "info", "tooltip"}, {"_button", "Button", "Accordion", "TabItem"}
# Of components that are never seen
_HIDDEN = {
    "Add", "Checkpoint", "Choose the part", "Crop box", "Download", "Exchange", "Image masks", "Image weights",
    "IP-Adapter", "List", "Move", "Poll", "Remove", "Drop, paste or browse",
}  # fmt: skip
_STATEMENT = re.compile(r"[\"'>]([A-Z][^\"'<>`$]*)[\"'<]")
# Texts of JavaScript that are no words of the page
_NO_WORDS = {"ArrowDown", "ArrowLeft", "ArrowRight", "ArrowUp", "Escape", "Ctrl+Z", "Alt", "IP-Adapter", "None", "POST"}
_NO_WORDS |= {"Enter", "Delete", "Files"}  # keys, and what a drag carries
_NO_WORDS |= {"The reference image", "This unit"}  # for screen readers, which the WebUI
_NO_WORDS |= {"Canvas. Arrow keys move the brush, space puts it down or lifts it, [ and ] change its size."}  # leaves


def fields() -> Iterator[str]:
    """Labels and helps; of pictures both in one text."""
    for field in FIELDS:
        if field.name in ("box", "focus"):
            continue
        if field.name == "images":
            yield field.label
        elif field.kind in ("image", "images"):
            yield f"{field.label}: {field.help}"
        else:
            yield from (field.label, field.help) if field.name != "model" else (field.label,)
    yield from (fold.title for fold in FOLDS)


def _texts(path: Path, keywords: set[str], calls: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = [word.value for word in node.keywords if word.arg in keywords]
        if getattr(node.func, "attr", getattr(node.func, "id", "")) in calls:
            given += node.args
        yield from (one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str))


def panel() -> Iterator[str]:
    """Of the panel's Python."""
    for path in sorted([*PANEL.glob("*.py"), *(PANEL.parent / "train").glob("*.py")]):
        yield from (text for text in _texts(path, _SHOWN, _CALLS) if text[:1].isupper() and text not in _HIDDEN)
    yield from (f"Unit {number}" for number in range(1, UNITS + 1))


def markup() -> Iterator[str]:
    """Of the HTML that Python writes."""
    from lib_ipadapter.webui.panel import html
    from lib_ipadapter.webui.train import texts

    for pad in html._PADS.values():
        yield from pad[:2]
    yield from ("Remove the mask", "Drop, paste", "or browse", "Use the img2img image", "weight", html.INPUT_SHOWN)
    yield from (html.CHOOSE, html.NONE_FITS, html.NONE_THERE)
    yield from texts.WORDS
    text = (PANEL / "charts.py").read_text(encoding="utf-8")
    for word in ("input", "middle", "output", "first step", "last step"):
        assert word in text, f"{word}: no word of the charts any more"
        yield word


def scripts() -> Iterator[str]:
    """Of the page's JavaScript."""
    for path in sorted((ROOT / "javascript").glob("*.js")):
        code = re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for found in _STATEMENT.finditer(code.replace("\\u2026", "\u2026")):
            text = found[1].strip()
            if text not in _NO_WORDS and len(text) > 2:
                yield text


def settings() -> Iterator[str]:
    """Of the extension's section in the settings; the WebUI puts remarks in brackets."""
    path = PANEL.parent / "settings.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add":
            texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
            remarks = [word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)]
            yield texts[1]
            yield from (f"({text})" for text in [*texts[2:], *remarks])


def words() -> list[str]:
    """All of them, each once."""
    return list(dict.fromkeys([*fields(), *panel(), *markup(), *scripts(), *settings()]))
