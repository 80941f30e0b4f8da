"""The part of a reference that counts, chosen in the real page."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image

from lib_ipadapter.pictures.images import content_hash, load

from .pages import PanelPage, upload
from .test_generate import generate, infotext, small

__all__ = ["small"]


def box(panel: PanelPage) -> str:
    return panel.unit(0, "box").locator("textarea, input").input_value()


def drag(panel: PanelPage, place: int, begin: tuple[float, float], end: tuple[float, float], button: str) -> None:
    """Opens the picture at ``place``, drags between shares of it, and presses a button."""
    page = panel.page
    panel.unit(0, "thumbnails").locator("img").nth(place).click()
    area = page.locator(".ipadapter-crop-area")
    area.wait_for(state="visible")
    page.wait_for_function("document.querySelector('.ipadapter-crop-area img').naturalWidth > 0")
    at = area.bounding_box()
    points = [(at["x"] + x * at["width"], at["y"] + y * at["height"]) for x, y in (begin, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()
    page.locator(".ipadapter-crop button", has_text=button).click()
    area.wait_for(state="detached")


def numbers(text: str) -> list[list[float]]:
    return [[float(x) for x in part.split(",") if x.strip()] for part in text.split(";")]


def test_a_box_is_dragged_on_each_picture(panel: PanelPage):
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    whole = panel.sources()
    drag(panel, 1, (0.25, 0.1), (0.75, 0.9), "Apply")
    first, second = numbers(box(panel))
    assert first == []
    assert all(abs(a - b) < 0.05 for a, b in zip(second, (0.25, 0.1, 0.75, 0.9), strict=True))
    panel.until(lambda: [a == b for a, b in zip(panel.sources(), whole, strict=True)], [True, False])
    drag(panel, 0, (0.9, 0.9), (0.5, 0.5), "Apply")  # from the other corner
    first, _ = numbers(box(panel))
    assert all(abs(a - b) < 0.05 for a, b in zip(first, (0.5, 0.5, 0.9, 0.9), strict=True))
    drag(panel, 0, (0.1, 0.1), (0.2, 0.2), "Cancel")
    assert numbers(box(panel))[0] == first
    drag(panel, 0, (0.1, 0.1), (0.2, 0.2), "Whole image")
    drag(panel, 1, (0.1, 0.1), (0.2, 0.2), "Whole image")
    panel.until(lambda: box(panel), "")
    panel.until(panel.sources, whole)


def test_a_small_picture_is_shown_large_and_its_crop_survives_the_mask(panel: PanelPage):
    """F22: what was dragged counts when a mask is painted next; a click beside the dialog closes it."""
    page = panel.page
    panel.add(0, upload(0, size=(64, 64)))
    panel.until(panel.thumbs, 1)
    opened = panel.unit(0, "thumbnails").locator(".ipadapter-open").first
    opened.click()
    page.wait_for_function("document.querySelector('.ipadapter-crop-area img').naturalWidth > 0")
    panel.until(lambda: page.locator(".ipadapter-crop-area").bounding_box()["width"] > 300, True)
    page.mouse.click(3, 3)
    page.wait_for_selector("dialog.ipadapter-crop", state="detached")
    assert box(panel) == ""
    drag(panel, 0, (0.25, 0.1), (0.75, 0.9), "Paint a mask")
    panel._paint(("left",), ())
    assert all(abs(a - b) < 0.05 for a, b in zip(numbers(box(panel))[0], (0.25, 0.1, 0.75, 0.9), strict=True))
    panel.until(lambda: panel.unit(0, "thumbnails").locator(".ipadapter-cut").inner_text(), "\u2702 cropped masked")


def test_negatives_and_a_painted_reference_mask_act(panel: PanelPage, small: Any):
    """F9: a mask changes what the tile shows."""
    page = panel.page
    panel.choose_model(0, "sd1-base")
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.unit(0, "look").locator(".label-wrap").click()
    panel.unit(0, "negative").locator("input[type=file]").set_input_files([upload(1)])
    whole = panel.sources()
    panel.mask_tile(0, 0, stroke=((0.3, 0.3), (0.7, 0.7)))
    panel.until(lambda: panel.sources() != whole, True)
    assert "masked" in panel.unit(0, "thumbnails").inner_text()
    generate(page)
    text = infotext(page)
    entry = json.JSONDecoder().raw_decode(text[text.index("[{") :].replace('\\"', '"'))[0][0]
    negative = load(Image.open(io.BytesIO(upload(1)["buffer"])))
    assert entry["negative"] == [content_hash(negative)]
    (image,) = entry["images"]
    assert len(image["mask"]) == len(image["hash"]) == 16
    # Clearing leaves nothing of the references behind, which would act on the next one.
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    panel.add(0, upload(0))
    panel.until(panel.sources, whole)
    panel.until(lambda: panel.unit(0, "negative").locator("a").count(), 0)
