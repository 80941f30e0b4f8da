"""Infotext in the real page: what a pasted text sets, and what it says about pictures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .pages import PanelPage, upload

LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"


def paste(page: Any, units: Any, tab: str = "txt2img") -> None:
    """Pastes an infotext with ``units`` as our key's value; None leaves the key out."""
    value = units if isinstance(units, str) or units is None else json.dumps(units)
    key = "" if value is None else f", IP-Adapter: {json.dumps(value)}"
    prompt = page.locator(f"#{tab}_prompt textarea")
    prompt.fill(f"a hill\nNegative prompt: rain\n{LINE}{key}, Version: v1.10.1")
    prompt.blur()
    page.locator(f"#{tab}_tools #paste").click()
    arrived = "tab => document.querySelector(`#${tab}_prompt textarea`).value === 'a hill'"
    page.wait_for_function(arrived, arg=tab)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_every_field_arrives_exactly(page: Any, tab: str):
    if tab == "img2img":
        page.locator("#tabs > .tab-nav button", has_text="img2img").click()
    panel = PanelPage(page, tab)
    model = panel.open().models()[-1]
    first = {"model": model, "weight": 0.123, "start": 0.05, "end": 0.875, "fit": "pad", "images": ["a", "b"],
             "weight_type": "ease in", "curve": "0:0, 0.5:1.25", "interpolation": "step", "hires_factor": 0.5,
             "feather": 12.0}  # fmt: skip
    third = {"unit": 3, "model": model, "weight": -1.0, "combine": "average",
             "images": [{"hash": "c", "weight": 0.5}, {"hash": "d", "weight": 1.25}]}  # fmt: skip
    paste(page, [first, third], tab)
    panel.until(panel.title, "IP-Adapter [2]")
    panel.until(lambda: [panel.is_enabled(i) for i in range(3)], [True, False, True])
    assert [panel.number(0, name) for name in ("weight", "start", "end")] == [0.123, 0.05, 0.875]
    assert (panel.choice(0, "fit"), panel.dropdown(0, "combine"), panel.model(0)) == ("pad", "concat", model)
    panel.unit(0, "fine").locator(".label-wrap").click()
    assert (panel.dropdown(0, "weight_type"), panel.choice(0, "interpolation")) == ("ease in", "step")
    assert panel.unit(0, "curve").locator("textarea, input").input_value() == "0:0, 0.5:1.25"
    assert (panel.number(0, "hires_factor"), panel.choice(0, "passes")) == (0.5, "both")
    panel.unit(0, "where").locator(".label-wrap").click()
    assert panel.number(0, "feather") == 12
    panel.show_unit(2)
    assert (panel.number(2, "weight"), panel.number(2, "end")) == (-1.0, 1.0)
    assert (panel.choice(2, "fit"), panel.dropdown(2, "combine")) == ("crop", "average")
    assert panel.weights_text(2) == "0.5, 1.25"
    panel.until(lambda: panel.note(2), "Add the images that this text was made with: c, d.")


def test_the_note_follows_the_pictures(page: Any, panel: PanelPage, hash_of: Any):
    """A picture that the panel has shown has a name, another one its hash (F13)."""
    shown, never = upload(1, "shown.png", (79, 80)), upload(0, size=(77, 78))
    panel.add(0, shown)
    panel.until(panel.thumbs, 1)
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    wanted = [hash_of(never["buffer"]), hash_of(shown["buffer"])]
    paste(page, [{"model": panel.models()[-1], "images": wanted}])
    panel.until(panel.note, f"Add the images that this text was made with: {wanted[0]}, shown.png.")
    panel.add(0, shown)
    panel.until(lambda: panel.note().startswith(f"Add the image that this text was made with: {wanted[0]}."), True)
    panel.add(0, never)
    panel.until(panel.note, "These are the images of the pasted text, in another order.")
    paste(page, None)
    panel.until(panel.note, "")


def test_a_pasted_text_finds_the_pictures_that_were_shown(page: Any, panel: PanelPage, hash_of: Any):
    """F13: they are put back in place of others."""
    panel.choose_model(0, "sd1-base")
    shown = [upload(0, "one.png", (71, 72)), upload(1, "two.png", (73, 74))]
    panel.add(0, *shown)
    panel.until(panel.thumbs, 2)
    before = panel.sources()
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    panel.add(0, upload(2))
    panel.until(panel.thumbs, 1)
    first, second = (hash_of(one["buffer"]) for one in shown)
    paste(page, [{"model": "sd1-base", "images": [{"hash": first, "weight": 0.5}, second]}])
    panel.until(panel.sources, before)
    panel.until(panel.note, "These are the images of the pasted text.")
    panel.until(panel.weights_text, "0.5, 1")


def test_a_text_without_our_key_was_made_without_us(page: Any, panel: PanelPage):
    paste(page, None)
    panel.until(panel.is_on, False)


def test_a_broken_value_is_ignored_with_a_note(page: Any, panel: PanelPage):
    note = page.locator("#ipadapter_txt2img_notes").first
    for value in ("[{", "7", '[{"model": 5}]', '[{"unit": 99, "model": "m", "images": []}]'):
        paste(page, value)
        panel.until(lambda: note.inner_text().strip().startswith("The pasted text"), True)
        paste(page, None)
        panel.until(lambda: note.inner_text().strip(), "")


def test_what_a_text_lacks_is_said_in_red_until_the_unit_is_emptied(page: Any, panel: PanelPage, hash_of: Any):
    """A mask cannot be pasted, and without it another picture is drawn."""
    shown = upload(1, "shown.png", (61, 62))
    panel.add(0, shown)
    panel.until(panel.thumbs, 1)
    text = [{"model": "sd1-base", "images": [hash_of(shown["buffer"])], "mask": "f" * 16}]
    paste(page, text)
    line = page.locator("#ipadapter_txt2img_notes .ipadapter-error").first
    panel.until(lambda: line.count() > 0 and "mask" in line.inner_text(), True)
    panel.until(panel.note, "These are the images of the pasted text.")
    panel.unit(0, "clear").click()
    panel.until(line.count, 0)
    panel.until(panel.note, "")
    paste(page, text)
    panel.until(panel.thumbs, 1)  # the same text finds its picture again
