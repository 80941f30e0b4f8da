"""The panel in the real page: pictures, title, model, units."""

from __future__ import annotations

import base64
from typing import Any

from .pages import PanelPage, picture, upload


def test_the_title_counts_the_units_that_act(page: Any):
    panel = PanelPage(page)
    assert panel.title() == "IP-Adapter"
    panel.open()
    panel.until(panel.title, "IP-Adapter [1]")
    panel.show_unit(1)
    panel.unit(1, "enabled").locator("input").check()
    panel.until(panel.title, "IP-Adapter [2]")
    acting = page.locator("#ipadapter_txt2img_units .tab-nav button.ipadapter-acts")
    assert [tab.inner_text().strip() for tab in acting.all()] == ["Unit 1", "Unit 2"]
    page.locator("#ipadapter_txt2img-visible-checkbox").uncheck()
    panel.until(panel.title, "IP-Adapter")


def test_pictures_are_added_shown_and_taken_out(panel: PanelPage):
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.add(0, upload(2))
    panel.until(panel.thumbs, 3)
    first, _, third = panel.sources()
    weights = panel.unit(0, "image_weights").locator("input, textarea")
    weights.fill("1, 0.5, 0.25")
    weights.blur()
    panel.until(lambda: panel.unit(0, "thumbnails").inner_text().split("\n")[-1].strip(), "\u00d7 0.25")
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").nth(1).click()
    panel.until(panel.thumbs, 2)
    assert panel.sources() == [first, third]
    assert panel.weights_text() == "1, 0.25"
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    assert not panel.unit(0, "clear").is_visible()


def test_the_squares_follow_the_fit(panel: PanelPage):
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    seen = {tuple(panel.sources())}
    for fit in ("pad", "stretch"):
        panel.choose(0, "fit", fit)
        panel.until(lambda: tuple(panel.sources()) in seen, False)
        seen.add(tuple(panel.sources()))
    assert len(seen) == 3


def test_wrong_weights_are_said_in_the_panel(panel: PanelPage):
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    weights = panel.unit(0, "image_weights").locator("input, textarea")
    weights.fill("1, much")
    weights.blur()
    panel.until(lambda: "one per picture" in panel.note(), True)
    assert panel.thumbs() == 2


def test_a_file_that_is_no_picture_is_said_in_its_tile(panel: PanelPage):
    panel.add(0, {"name": "fake.png", "mimeType": "image/png", "buffer": b"not a picture"})
    error = panel.unit(0, "thumbnails").locator(".ipadapter-error")
    error.wait_for()
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").click()
    error.wait_for(state="detached")


def test_a_picture_switches_its_unit_on_and_clearing_switches_it_off(panel: PanelPage):
    panel.show_unit(2)
    assert not panel.is_enabled(2)
    panel.add(2, upload(0))
    panel.until(lambda: panel.is_enabled(2), True)
    panel.until(panel.title, "IP-Adapter [2]")
    panel.unit(2, "clear").click()
    panel.until(lambda: panel.is_enabled(2), False)


_EVENT = """([selector, kind, data]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "given.png", {type: "image/png"}));
    const target = document.querySelector(selector);
    const init = {bubbles: true, cancelable: true, composed: true};
    const event = kind === "paste"
        ? new ClipboardEvent("paste", {...init, clipboardData: transfer})
        : new DragEvent(kind, {...init, dataTransfer: transfer});
    return target.dispatchEvent(event);
}"""


def give(page: Any, selector: str, kind: str, seed: int = 0) -> None:
    """Dispatches a paste or drop of a picture; the page must have taken it."""
    data = base64.b64encode(picture(seed)).decode()
    assert page.evaluate(_EVENT, [selector, kind, data]) is False


def test_paste_goes_to_the_unit_that_is_shown(page: Any, panel: PanelPage):
    panel.show_unit(1)
    panel.unit(1, "weight").hover()
    give(page, "body", "paste")
    panel.until(lambda: panel.thumbs(1), 1)
    give(page, "body", "paste", 1)
    panel.until(lambda: panel.thumbs(1), 2)
    assert panel.thumbs(0) == 0


def test_paste_elsewhere_is_left_alone(page: Any, panel: PanelPage):
    page.locator("#txt2img_prompt textarea").hover()
    data = base64.b64encode(picture()).decode()
    assert page.evaluate(_EVENT, ["#txt2img_prompt textarea", "paste", data]) is True
    page.wait_for_timeout(500)
    assert panel.thumbs(0) == 0


def test_drop_anywhere_on_the_image_area(page: Any, panel: PanelPage):
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    target = "#ipadapter_txt2img_0_thumbnails img"
    give(page, target, "dragover")
    assert page.locator(".ipadapter-images.ipadapter-over").count() == 1
    give(page, target, "drop", 1)
    panel.until(panel.thumbs, 2)
    assert page.locator(".ipadapter-images.ipadapter-over").count() == 0


def test_a_preset_is_saved_chosen_and_deleted(panel: PanelPage):
    panel.set_number(0, "weight", 0.35)
    panel.choose(0, "fit", "pad")
    name = panel.unit(0, "preset").locator("input")
    name.fill("from the page")
    name.press("Enter")
    panel.unit(0, "save_preset").click()
    panel.until(lambda: panel.unit(0, "preset_note").inner_text().strip(), "Saved as from the page.")
    panel.set_number(0, "weight", 1)
    panel.choose(0, "fit", "crop")
    name.click()
    panel.page.locator("ul.options li").filter(has_text="from the page").first.click()
    panel.until(lambda: panel.number(0, "weight"), 0.35)
    panel.until(lambda: panel.choice(0, "fit"), "pad")
    panel.unit(0, "delete_preset").click()
    panel.until(lambda: "Deleted" in panel.unit(0, "preset_note").inner_text(), True)
