"""Units among each other, and the picture of img2img as a reference."""

from __future__ import annotations

from typing import Any

from .pages import PanelPage, upload
from .reuse import answer, hold
from .test_panel import weights_shown


def test_a_unit_is_copied_and_changes_places(panel: PanelPage):
    panel.choose_model(0, "sd1-plus")
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.set_weight(0, 1, 0.5)
    panel.set_number(0, "weight", 0.7)
    whole = panel.sources()
    panel.mask_tile(0, 0, "left")
    panel.until(lambda: panel.sources() != whole, True)
    sources = panel.sources()
    hold(panel.page)
    panel.from_menu(0, "Copy to unit 2")
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").first.click()  # not while the units are exchanged
    answer(panel.page)
    panel.until(lambda: panel.sources(1), sources)
    panel.until(lambda: panel.unit(0, "image_area").get_attribute("class").find("ipadapter-busy"), -1)
    panel.until(lambda: (panel.model(1), panel.number(1, "weight"), panel.is_enabled(1)), ("sd1-plus", 0.7, True))
    assert panel.sources(0) == sources
    panel.until(panel.title, "IP-Adapter [2]")
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    panel.set_number(0, "weight", 0.2)
    panel.from_menu(0, "Swap with unit 2")
    panel.until(panel.sources, sources)
    panel.until(lambda: panel.thumbs(1), 0)
    panel.until(lambda: (panel.number(0, "weight"), panel.number(1, "weight")), (0.7, 0.2))
    assert weights_shown(panel) == ["1", "0.5"]


def test_the_menu_by_the_keyboard(panel: PanelPage):
    panel.set_number(0, "weight", 0.7)
    menu = panel.unit(0, "menu")
    menu.focus()
    menu.press("Enter")
    panel.page.keyboard.press("ArrowUp")
    assert panel.page.evaluate("document.activeElement.textContent") == "Reset this unit"
    panel.page.keyboard.press("Enter")
    panel.until(lambda: panel.number(0, "weight"), 1)
    menu.press("Enter")
    panel.page.keyboard.press("Escape")
    assert panel.page.locator("dialog.ipadapter-menu").count() == 0
    menu.press("Enter")
    panel.page.mouse.wheel(0, 200)  # it stayed where it was, away from its button
    panel.page.locator("dialog.ipadapter-menu").wait_for(state="detached")


def test_the_picture_of_img2img_is_a_reference(page: Any):
    assert PanelPage(page).open().unit(0, "thumbnails").locator(".ipadapter-input").count() == 0
    page.locator("#tabs > .tab-nav button", has_text="img2img").click()
    panel = PanelPage(page, "img2img").open()
    panel.choose_model(0, "sd1-base")
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.unit(0, "thumbnails").locator(".ipadapter-input").click()
    tiles = panel.unit(0, "thumbnails").locator(".ipadapter-thumb")
    panel.until(tiles.count, 2)
    assert "the img2img image" in tiles.nth(1).inner_text()
    panel.set_weight(0, 1, 0.5)
    panel.until(panel.weights_text, "1, 0.5")
    for name, value in (("steps", 2), ("width", 64), ("height", 64), ("seed", 1)):
        box = page.locator(f"#img2img_{name} input[type=number]").first
        box.fill(str(value))
        box.blur()
    page.locator("#img2img_image input[type=file]").first.set_input_files(upload(1))
    page.locator("#img2img_image img").first.wait_for()
    page.locator("#img2img_generate").click()
    page.locator("#img2img_gallery .thumbnail-item img, #img2img_gallery .preview img").first.wait_for(timeout=90_000)
    text = page.locator("#html_info_img2img").first
    panel.until(lambda: '{\\"input\\": \\"img2img\\", \\"weight\\": 0.5}' in text.inner_text(), True)
    tiles.nth(1).locator(".ipadapter-remove").click()
    panel.until(tiles.count, 1)
    assert panel.unit(0, "thumbnails").locator(".ipadapter-input").count() == 1
    page.locator("#img2img_image button[aria-label='Clear']").first.click()  # for the next test
    page.locator("#img2img_image img").first.wait_for(state="detached")


def test_what_the_page_said_goes_when_the_unit_is_emptied(panel: PanelPage):
    """F16."""
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.add(0, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    line = panel.page.locator(".ipadapter-page-note")
    panel.until(line.count, 1)
    panel.unit(0, "clear").click()
    panel.until(line.count, 0)
    panel.unfold(0, "saved")
    panel.unit(0, "save_embeds").click()
    saved = panel.unit(0, "saved_note")
    panel.until(lambda: bool(saved.inner_text().strip()), True)
    panel.add(0, upload(0))
    panel.until(lambda: saved.inner_text().strip(), "")
