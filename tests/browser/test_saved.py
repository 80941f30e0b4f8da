"""Saved references in the real page: save a unit's as embeds, choose them, paste them back, delete them."""

from __future__ import annotations

from typing import Any

from .pages import PanelPage, upload
from .test_paste import paste


def saved(panel: PanelPage) -> list[str]:
    """What is chosen."""
    return [text.strip() for text in panel.unit(0, "saved_references").locator(".token").all_inner_texts()]


def test_embeds_are_saved_chosen_and_pasted(page: Any, panel: PanelPage):
    """F17: embeds beside the pictures that they were made of would count twice; what to do instead is said."""
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.choose_model(0, "sd1-base")
    panel.unfold(0, "saved")
    name = panel.unit(0, "embeds_name").locator("input, textarea")
    name.fill("a face")
    name.blur()
    panel.unit(0, "save_embeds").click()
    panel.until(lambda: 'Saved embeds "a face"' in panel.unit(0, "saved_note").inner_text(), True, 60)
    assert "To use them instead of the images, remove these" in panel.unit(0, "saved_note").inner_text()
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    panel.unit(0, "saved_references").locator("input").click()
    page.locator("ul.options li").filter(has_text="embeds: a face").first.click()
    panel.until(lambda: saved(panel), ["embeds: a face"])
    named = panel.unit(0, "thumbnails").locator(".ipadapter-named")
    panel.until(named.count, 1)
    named.locator(".ipadapter-remove").click()
    panel.until(lambda: saved(panel), [])
    panel.unit(0, "saved_references").locator("input").click()
    page.locator("ul.options li").filter(has_text="embeds: a face").first.click()
    panel.until(named.count, 1)
    panel.unit(0, "clear").click()
    panel.until(lambda: saved(panel), [])
    images = [{"embeds": "a face", "weight": 0.5}]
    paste(page, [{"model": "sd1-base", "images": images}])
    panel.until(lambda: saved(panel), ["embeds: a face"])
    panel.until(lambda: panel.weights_text(), "0.5")
    # Dropped in the list itself: its weight goes with it (F1).
    panel.add(0, upload(1))
    panel.until(panel.thumbs, 1)
    panel.until(lambda: panel.unit(0, "thumbnails").locator(".ipadapter-weight input").count(), 2)
    panel.set_weight(0, 0, 0.25)
    panel.until(panel.weights_text, "0.25, 0.5")
    panel.unit(0, "saved_references").locator(".token-remove").first.click()
    panel.until(lambda: saved(panel), [])
    panel.until(panel.weights_text, "0.25")
    panel.until(panel.note, "")
    page.once("dialog", lambda dialog: dialog.accept())
    panel.unit(0, "delete_embeds").click()
    panel.until(lambda: 'Deleted embeds "a face"' in panel.unit(0, "saved_note").inner_text(), True)
    name.fill("")  # a reset leaves it
    name.blur()
