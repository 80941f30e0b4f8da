"""The mask editor alone, in Chromium, without a WebUI: what is painted is what comes out."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = "<!doctype html><html><head><style>{style}</style></head><body><script>{script}</script></body></html>"


@pytest.fixture
def editor(browser):
    """An open editor of 256 x 128 on a page of its own."""
    page = browser.new_page(viewport={"width": 900, "height": 900})
    script, style = (ROOT / name for name in ("javascript/ipadapter_mask.js", "style.css"))
    page.set_content(PAGE.format(style=style.read_text("utf-8"), script=script.read_text("utf-8")))
    yield Editor(page)
    page.close()


class Editor:
    """Drives the dialog."""

    def __init__(self, page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()

    def open(self, **more) -> None:
        options = {"title": "Region", "size": [256, 128], **more}
        self.page.evaluate(
            "o => { window.result = undefined; ipadapterMask.open(o).then(r => window.result = r); }", options
        )
        self.page.wait_for_selector("dialog[open]")

    def press(self, value: str) -> None:
        self.page.click(f'dialog button[value="{value}"]')

    def brush(self, size: int) -> None:
        self.page.evaluate("s => { document.querySelector('dialog input[type=range]').value = s; }", size)

    def drag(self, *points: tuple[float, float]) -> None:
        box = self.page.locator(".ipadapter-mask-canvas").bounding_box()
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        for point in at[1:]:
            self.page.mouse.move(*point, steps=5)
        self.page.mouse.up()

    def result(self, value: str = "apply"):
        self.press(value)
        self.page.wait_for_function("window.result !== undefined")
        assert not self.errors
        return self.page.evaluate("window.result")

    def mask(self) -> np.ndarray:
        """What was applied, [128, 256] in 0..1."""
        url = self.result()
        assert url.startswith("data:image/png;base64,")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L")) / 255

    def note(self) -> str:
        return self.page.inner_text(".ipadapter-mask-note")


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_stroke_is_white_where_it_was_painted(editor):
    """F29."""
    editor.brush(20)
    editor.drag((0.25, 0.5), (0.75, 0.5))
    assert "% of the picture" in editor.note()
    mask = editor.mask()
    assert mask.shape == (128, 256)
    assert mask[64, 70:186].min() == 1
    assert mask[:40].max() == mask[90:].max() == 0
    assert mask[64, :40].max() == 0


def test_the_eraser_takes_away_and_undo_brings_back(editor):
    editor.press("fill")
    editor.press("eraser")
    editor.brush(30)
    editor.drag((0.5, 0.5), (0.5, 0.51))
    editor.press("undo")
    assert "Everything" in editor.note()
    editor.drag((0.5, 0.5), (0.5, 0.51))
    mask = editor.mask()
    assert mask[64, 128] == 0
    assert mask[5, 5] == 1


@pytest.mark.parametrize("presses", [[], ["fill"], ["left", "clear"], ["fill", "invert"]])
def test_an_even_mask_is_none(editor, presses):
    for value in presses:
        editor.press(value)
    assert "no mask" in editor.note()
    assert editor.result() == ""


HALVES = {"left": [(60, 20), (60, 200)], "right": [(60, 200), (60, 20)], "top": [(20, 99), (100, 99)],
          "bottom": [(100, 99), (20, 99)]}  # fmt: skip


@pytest.mark.parametrize("half", HALVES)
def test_halves(editor, half):
    """F29."""
    inside, outside = HALVES[half]
    editor.press(half)
    mask = editor.mask()
    assert (mask[inside], mask[outside], mask.mean()) == (1, 0, 0.5)


def test_invert_changes_places(editor):
    editor.press("left")
    editor.press("invert")
    mask = editor.mask()
    assert (mask[60, 20], mask[60, 200]) == (0, 1)


def test_cancel_and_escape_change_nothing(editor):
    editor.press("left")
    assert editor.result("cancel") is None
    editor.open()
    editor.page.keyboard.press("Escape")
    editor.page.wait_for_function("window.result === null")
    assert editor.page.locator("dialog").count() == 0


def test_the_present_mask_is_shown_and_kept(editor):
    editor.press("left")
    url = editor.result()
    editor.open(mask=url)
    assert "50 %" in editor.note()
    assert editor.mask().mean() == 0.5


@pytest.mark.parametrize("kind", ["white on black", "only alpha"])
def test_an_image_file_becomes_the_mask(editor, kind):
    picture = Image.new("RGBA", (64, 32), (0, 0, 0, 255 if kind == "white on black" else 0))
    picture.paste((255, 255, 255, 255) if kind == "white on black" else (0, 0, 0, 255), (0, 0, 32, 32))
    editor.page.set_input_files(
        "dialog input[type=file]", {"name": "m.png", "mimeType": "image/png", "buffer": png(picture)}
    )
    editor.page.wait_for_function("document.querySelector('.ipadapter-mask-note').textContent.includes('50 %')")
    mask = editor.mask()
    assert mask[60, 40] == 1
    assert mask[60, 220] == 0


def test_files_that_are_no_masks_are_named(editor):
    for name, content in (("grey.png", png(Image.new("RGB", (9, 9), (70, 70, 70)))), ("broken.png", b"text")):
        editor.page.set_input_files(
            "dialog input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content}
        )
        editor.page.wait_for_function(f"document.querySelector('.ipadapter-mask-note').textContent.includes('{name}')")
    assert editor.result() == ""


def test_the_keyboard_paints(editor):
    editor.brush(16)
    for key in ("Space", *["ArrowRight"] * 10, "Space", *["ArrowDown"] * 6):
        editor.page.keyboard.press(key)
    mask = editor.mask()
    assert mask[64, 128] == mask[64, 160] == 1
    assert mask[90, 168] == 0  # the brush was lifted
    assert mask[64, 100] == 0


def test_touch_paints_and_zoom_keeps_the_place(editor):
    editor.press("in")
    editor.brush(16)
    editor.drag((0.1, 0.2), (0.3, 0.2))
    mask = editor.mask()
    assert mask[int(0.2 * 128), int(0.2 * 256)] == 1


def test_a_large_picture_gives_a_mask_of_the_same_proportion(editor):
    editor.result("cancel")
    editor.open(size=[4000, 1000])
    editor.press("left")
    assert editor.mask().shape == (256, 1024)


def test_a_backdrop_alone_is_no_mask(editor):
    """F2: what shows through is not what was painted. F29: a picture can lie below."""
    editor.result("cancel")
    url = (
        "data:image/png;base64," + base64.b64encode(png(Image.effect_mandelbrot((64, 32), (-2, -1, 1, 1), 50))).decode()
    )
    editor.open(backdrops=[{"name": "Reference", "url": url}])
    assert editor.page.locator(".ipadapter-mask-backdrop").is_visible()
    assert editor.result() == ""


def test_every_control_has_a_name_and_the_dialog_a_title(editor):
    unnamed = editor.page.evaluate(
        "[...document.querySelectorAll('dialog button')].filter(b => !b.textContent.trim() && !b.ariaLabel).length"
    )
    assert unnamed == 0
    assert editor.page.get_by_role("dialog", name="Region").count() == 1
