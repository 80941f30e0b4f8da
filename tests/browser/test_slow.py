"""The page's script while the server is slow, and what browsers and systems hand it."""

from __future__ import annotations

from typing import Any

import pytest

from .pages import PanelPage, picture, upload
from .reuse import answer, asked, hold, settled
from .test_charts import centre, charts, fine, text

__all__ = ["fine"]  # a fixture

# Hands our area a file as a system would that knows no MIME type for it
GIVE = """([selector, bytes, name, type]) => {
    const given = new DataTransfer();
    given.items.add(new File([new Uint8Array(bytes)], name, {type}));
    const input = document.querySelector(selector);
    input.files = given.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
}"""
# Pastes into the element what a table program copies: text, and a picture of it
PASTE = """(element, [bytes, words]) => {
    const given = new DataTransfer();
    if (words) given.setData("text/plain", words);
    given.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
    element.focus();
    const event = new ClipboardEvent("paste", {clipboardData: given, bubbles: true, cancelable: true});
    return element.dispatchEvent(event);
}"""
# Drops a file of a system, and what came of it: whether the page kept the browser from opening it
DROP = """([selector, bytes]) => {
    const given = new DataTransfer(), area = document.querySelector(selector);
    given.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
    return ["dragover", "drop"].map(kind => !area.dispatchEvent(
        new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: given})));
}"""
# A tile is picked up and never put down: the server has drawn the tiles again meanwhile
PICKED_UP = """element => {
    element.dispatchEvent(new DragEvent("dragstart", {bubbles: true, dataTransfer: new DataTransfer()}));
    element.remove();
}"""
DRAG = """([selector, kind]) => {
    const area = document.querySelector(selector);
    area.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()}));
    return area.classList.contains("ipadapter-over");
}"""


def pulled(panel: PanelPage, index: int, by: float, release: bool = True) -> tuple[float, float]:
    """Drags a point of the curve up or down; where the pointer is then."""
    x, y = centre(panel, index)
    panel.page.mouse.move(x, y)
    panel.page.mouse.down()
    panel.page.mouse.move(x, y + by, steps=4)
    if release:
        panel.page.mouse.up()
    return x, y + by


def factors(panel: PanelPage) -> list[float]:
    return [float(pair.split(":")[1]) for pair in text(panel, "curve").input_value().split(",")]


def test_a_chart_that_is_drawn_again_while_a_point_is_dragged(fine: PanelPage):
    charts(fine).locator(".ipadapter-curve").scroll_into_view_if_needed()
    before = hold(fine.page)
    pulled(fine, 0, 15)
    asked(fine.page, before)
    x, y = pulled(fine, 1, 20, release=False)
    svg = charts(fine).locator(".ipadapter-curve").element_handle()
    answer(fine.page)
    fine.until(lambda: svg.evaluate("svg => svg.isConnected"), False)
    fine.page.mouse.move(x, y + 5)
    fine.page.mouse.up()
    first, second = factors(fine)
    assert 0 < first < 1
    assert 0 < second < first
    fine.page.mouse.click(5, 5)  # a script that broke would throw again here; the fixture sees it
    fine.until(lambda: charts(fine).locator("circle").count(), 2)
    assert factors(fine) == [first, second]


def test_each_of_several_quick_edits_is_kept(fine: PanelPage):
    """The answer to the first edit arrives after the second one, and must not undo it for the third."""
    charts(fine).locator(".ipadapter-curve").scroll_into_view_if_needed()
    before = hold(fine.page)
    pulled(fine, 0, 15)
    first = asked(fine.page, before)
    pulled(fine, 1, 20)
    svg = charts(fine).locator(".ipadapter-curve").element_handle()
    answer(fine.page, first)
    fine.until(lambda: svg.evaluate("svg => svg.isConnected"), False)
    before = factors(fine)
    pulled(fine, 0, 10)
    after = factors(fine)
    assert after[0] < before[0] < 1
    assert after[1] == before[1] < 1
    answer(fine.page)
    settled(fine.page)
    assert factors(fine) == after


def test_text_that_comes_with_a_picture_goes_into_our_text_boxes(fine: PanelPage):
    box = text(fine, "layers").first
    given = list(picture(0))
    assert box.evaluate(PASTE, [given, "0:1"]), "the browser was kept from pasting the text"
    fine.page.wait_for_timeout(1500)
    assert fine.thumbs() == 0
    box.evaluate(PASTE, [given, ""])  # a picture alone is a reference wherever the focus is
    fine.until(fine.thumbs, 1)


@pytest.mark.parametrize(("name", "kind", "count"), [
    ("photo.avif", "", 1), ("photo.JFIF", "application/octet-stream", 1), ("photo.png", "image/png", 1),
    ("notes.txt", "", 0), ("page.png.html", "text/html", 0),
])  # fmt: skip
def test_a_picture_without_a_mime_type_is_one_by_its_name(panel: PanelPage, name: str, kind: str, count: int):
    given = [f"{panel.root}_0_inbox input[type=file]", list(picture(0)), name, kind]
    panel.page.evaluate(GIVE, given)
    panel.until(panel.thumbs, count)
    refused = panel.page.locator(".ipadapter-page-note")
    assert refused.count() == (0 if count else 1)


def test_the_frame_goes_when_the_drag_leaves_the_window(panel: PanelPage):
    area = f"{panel.root}_0_image_area"
    assert panel.page.evaluate(DRAG, [area, "dragover"])
    assert not panel.page.evaluate(DRAG, [area, "dragleave"])
    assert panel.page.evaluate(DRAG, [area, "dragover"])  # and where no browser says that it has left
    panel.until(lambda: panel.page.locator(".ipadapter-over").count(), 0)


@pytest.mark.parametrize("between", [False, True])
def test_removing_twice_removes_what_was_shown(panel: PanelPage, between: bool):
    """The server is asked twice, first for the change and then for the tiles; the second click comes before or between
    its answers."""
    panel.add(0, upload(0), upload(1), upload(2))
    panel.until(panel.thumbs, 3)
    settled(panel.page)
    shown: list[Any] = panel.sources()
    before = hold(panel.page)
    first = panel.page.locator(f"{panel.root}_0_thumbnails .ipadapter-remove").first
    first.dispatch_event("click")
    once = asked(panel.page, before)
    if between:
        answer(panel.page, once)
        asked(panel.page, once)
    first.dispatch_event("click")
    answer(panel.page)
    panel.until(panel.thumbs, 2)
    settled(panel.page)
    assert panel.sources() == shown[1:]


def test_the_crop_is_that_of_the_picture_that_was_clicked(panel: PanelPage):
    panel.add(0, upload(0, size=(300, 100)), upload(1, size=(100, 300)))
    panel.until(panel.thumbs, 2)
    hold(panel.page)
    thumbs = panel.page.locator(f"{panel.root}_0_thumbnails img")
    thumbs.nth(0).dispatch_event("click")
    thumbs.nth(1).dispatch_event("click")
    answer(panel.page)
    dialog = panel.page.locator("dialog.ipadapter-crop")
    dialog.wait_for(state="visible")
    image = dialog.locator("img")
    panel.until(lambda: image.evaluate("image => image.naturalWidth > image.naturalHeight"), True)
    dialog.locator(".ipadapter-crop-area").hover()
    box = dialog.locator(".ipadapter-crop-area").bounding_box()
    panel.page.mouse.move(box["x"] + 5, box["y"] + 5)
    panel.page.mouse.down()
    panel.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    panel.page.mouse.up()
    dialog.locator("button[value=use]").click()
    written = panel.unit(0, "box").locator("textarea, input").input_value()
    assert written.endswith("; "), written  # the first picture's, and none of the second


def test_equal_pictures_that_change_places(panel: PanelPage):
    """The tiles look the same afterwards, and the next click counts."""
    panel.add(0, upload(0), upload(0))
    panel.until(panel.thumbs, 2)
    panel.page.locator(f"{panel.root}_0_thumbnails .ipadapter-open").first.press("Alt+ArrowRight")
    panel.until(lambda: panel.page.locator(".ipadapter-busy").count(), 0, seconds=10)
    panel.page.locator(f"{panel.root}_0_thumbnails .ipadapter-remove").first.dispatch_event("click")
    panel.until(panel.thumbs, 1, seconds=10)


def test_a_file_that_is_dropped_after_a_tile_went_while_it_was_dragged(panel: PanelPage):
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.page.locator(f"{panel.root}_0_thumbnails .ipadapter-open").first.evaluate(PICKED_UP)
    area = f"{panel.root}_0_image_area"
    assert panel.page.evaluate(DROP, [area, list(picture(1))]) == [True, True]
    panel.until(panel.thumbs, 2)


@pytest.mark.parametrize(("address", "name"), [("100%.png", "100%.png"), ("a%20b.png", "a b.png"), ("", "picture.png")])
def test_a_picture_of_any_name_is_fetched(panel: PanelPage, address: str, name: str):
    panel.page.route("**/odd/**", lambda route: route.fulfill(body=picture(), content_type="image/png"))
    seen = panel.page.evaluate("url => ipadapter.fileFrom(url).then(file => file.name)", f"/odd/{address}")
    assert seen == name
