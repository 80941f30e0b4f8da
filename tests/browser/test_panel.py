"""The panel in the real page: pictures, title, model, units."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from .conftest import load
from .pages import PanelPage, picture, upload
from .test_looks import drag


def test_the_title_counts_the_units_that_act(page: Any):
    """F10: switched off with references waiting, it says so."""
    panel = PanelPage(page)
    assert panel.title() == "IP-Adapter"
    panel.open()
    assert panel.title() == "IP-Adapter"  # nothing is chosen in the unit that is on
    panel.choose_model(0, "sd1-base")
    panel.until(panel.title, "IP-Adapter [1]")
    panel.show_unit(1)
    panel.add(1, upload(0))
    panel.until(panel.title, "IP-Adapter [2]")
    acting = page.locator("#ipadapter_txt2img_units .tab-nav button.ipadapter-acts")
    panel.until(lambda: [text.strip() for text in acting.all_inner_texts()], ["Unit 1", "Unit 2"])
    page.locator("#ipadapter_txt2img-visible-checkbox").uncheck()
    panel.until(panel.title, "IP-Adapter (off, 1 reference)")


def test_pictures_are_added_shown_and_taken_out(panel: PanelPage):
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.add(0, upload(2))
    panel.until(panel.thumbs, 3)
    first, _, third = panel.sources()
    panel.set_weight(0, 1, 0.5)
    panel.set_weight(0, 2, 0.25)
    panel.until(panel.weights_text, "1, 0.5, 0.25")
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").nth(1).click()
    panel.until(panel.thumbs, 2)
    assert panel.sources() == [first, third]
    panel.until(panel.weights_text, "1, 0.25")
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    panel.until(panel.unit(0, "clear").is_visible, False)


def test_the_squares_follow_the_fit(panel: PanelPage):
    """F9: the tile shows what is encoded; of a mask, see test_looks."""
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    seen = {tuple(panel.sources())}
    for fit in ("pad", "stretch"):
        panel.choose(0, "fit", fit)
        panel.until(lambda: tuple(panel.sources()) in seen, False)
        seen.add(tuple(panel.sources()))
    assert len(seen) == 3


def test_a_wrong_weight_is_said_in_the_panel(panel: PanelPage):
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.set_weight(0, 1, 9)
    panel.choose(0, "fit", "pad")  # the tiles are drawn again
    panel.until(lambda: "weight of image 2: got 9" in panel.note(), True)
    assert panel.thumbs() == 2


def weights_shown(panel: PanelPage) -> list[str]:
    """At one moment: a tile that goes while they are asked one by one would be waited for."""
    boxes = panel.unit(0, "thumbnails").locator(".ipadapter-weight input")
    return list(boxes.evaluate_all("boxes => boxes.map(box => box.value)"))


def cropped(panel: PanelPage) -> list[bool]:
    """Which tiles say that they are cropped."""
    tiles = panel.unit(0, "thumbnails").locator(".ipadapter-thumb")
    return list(tiles.evaluate_all("tiles => tiles.map(tile => Boolean(tile.querySelector('.ipadapter-cut')))"))


@pytest.mark.parametrize("how", ["keyboard", "mouse"])
def test_a_picture_owns_its_crop_and_weight(panel: PanelPage, how: str):
    """F1: adding, moving, removing and clearing keep them with their picture."""
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    drag(panel, 0, (0.1, 0.1), (0.6, 0.8), "Apply")
    panel.until(lambda: cropped(panel), [True])
    panel.add(0, upload(1), upload(2))
    panel.until(lambda: cropped(panel), [True, False, False])
    panel.set_weight(0, 0, 0.5)
    first, second, third = panel.sources()
    opens = panel.unit(0, "thumbnails").locator(".ipadapter-open")
    if how == "keyboard":
        opens.nth(0).focus()
        opens.nth(0).press("Alt+ArrowRight")
        panel.until(panel.sources, [second, first, third])
        opens.nth(1).press("Alt+ArrowRight")
    else:
        opens.nth(0).drag_to(opens.nth(2))
    panel.until(panel.sources, [second, third, first])
    assert (cropped(panel), weights_shown(panel)) == ([False, False, True], ["1", "1", "0.5"])
    drag(panel, 1, (0.2, 0.1), (0.7, 0.9), "Apply")
    panel.until(lambda: cropped(panel), [False, True, True])
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").nth(0).click()
    panel.until(lambda: (cropped(panel), weights_shown(panel)), ([True, True], ["1", "0.5"]))
    panel.unit(0, "clear").click()
    panel.until(panel.thumbs, 0)
    panel.add(0, upload(3))
    panel.until(lambda: cropped(panel), [False])


def test_what_is_folded_away_is_said_and_reset_leaves_nothing(panel: PanelPage):
    """F4, F8."""
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    assert panel.state(0, "fine") == panel.state(0, "where") == panel.state(0, "look") == ""
    panel.unfold(0, "fine")
    panel.choose(0, "passes", "first")
    curve = panel.unit(0, "curve").locator("textarea, input")
    curve.fill("0:1, 1:0.5")
    curve.blur()
    panel.unfold(0, "fine")
    panel.until(lambda: panel.state(0, "fine"), "weight over steps 0:1, 1:0.5 \u00b7 passes first")
    panel.unfold(0, "where")
    panel.edit_mask(0, "mask", "left")
    panel.unfold(0, "where")
    panel.until(lambda: panel.state(0, "where"), "mask")
    panel.unfold(0, "look")
    panel.unit(0, "negative").locator("input[type=file]").set_input_files([upload(1)])
    panel.until(lambda: panel.state(0, "look"), "negative references 1")
    panel.set_number(0, "weight", 0.3)
    panel.from_menu(0, "Reset this unit")
    panel.until(panel.thumbs, 0)
    panel.until(lambda: [panel.state(0, name) for name in ("fine", "where", "look", "follow")], [""] * 4)
    panel.until(lambda: (panel.number(0, "weight"), panel.model(), panel.is_enabled(0)), (1, "None", True))


def test_only_what_can_act_is_shown(page: Any, panel: PanelPage):
    """F28: several references are mixed where there are several."""
    combine, distribute, weight = (panel.unit(0, name) for name in ("combine", "distribute", "composition"))
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    assert not combine.is_visible()
    assert not distribute.is_visible()
    panel.add(0, upload(1))
    panel.until(lambda: combine.is_visible() and distribute.is_visible(), True)
    assert not weight.is_visible()
    panel.choose(0, "weight_type", "style and composition")
    panel.until(weight.is_visible, True)
    panel.choose(0, "weight_type", "style transfer")
    panel.until(weight.is_visible, False)


def test_region_is_shown_in_both_tabs(page: Any, panel: PanelPage):
    """In txt2img a detail is inpainted, the hires pass redraws, and a pasted text may set it."""
    grow = panel.unit(0, "grow")
    panel.unfold(0, "where")
    panel.until(panel.unit(0, "region").is_visible, True)
    assert not grow.is_visible()
    panel.choose(0, "region", "face")
    panel.until(grow.is_visible, True)
    page.locator("#tabs > .tab-nav button", has_text="img2img").click()
    other = PanelPage(page, "img2img").open()
    other.unfold(0, "where")
    other.until(other.unit(0, "region").is_visible, True)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_unfolded_it_is_not_endless(page: Any, tab: str):
    """F30: it was 3020 pixels high."""
    if tab == "img2img":
        page.locator("#tabs > .tab-nav button", has_text="img2img").click()
    panel = PanelPage(page, tab).open()
    panel.choose_model(0, "sd1-base")
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.until(lambda: "fits" in panel.info(), True)
    for name in ("saved", "where", "fine", "look", "follow"):
        panel.unfold(0, name)
    for name in ("embeds_name", "feather", "curve", "noise", "in_loopback"):
        panel.until(panel.unit(0, name).is_visible, True)
    page.wait_for_timeout(500)
    box = page.locator(f"#ipadapter_{tab}").bounding_box()
    assert box["width"] <= 700
    assert box["height"] <= 1500


def test_a_unit_that_is_filled_takes_the_last_model(panel: PanelPage):
    """F6."""
    panel.choose_model(0, "sd1-plus")
    panel.until(lambda: "fits sd1" in panel.info(), True)
    panel.show_unit(1)
    panel.add(1, upload(0))
    panel.until(lambda: panel.model(1), "sd1-plus")


def test_a_model_that_does_not_fit_is_said_and_listed_last(panel: PanelPage):
    """F7."""
    names = panel.models()
    assert names.index("sd1-base") < names.index("sdxl-base")
    panel.choose_model(0, "sdxl-base")
    panel.until(lambda: "not for sd1" in panel.info(), True)
    assert panel.unit(0, "info").locator(".ipadapter-chip.missing").count() == 1


def test_a_file_that_is_no_picture_is_said_in_its_tile(panel: PanelPage):
    """F20: by its name."""
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
    panel.until(panel.title, "IP-Adapter [1]")
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


def test_a_preset_is_saved_chosen_and_deleted(panel: PanelPage, url: str):
    panel.set_number(0, "weight", 0.35)
    panel.choose(0, "fit", "pad")
    name = panel.unit(0, "preset").locator("input")
    name.fill("from the page")
    name.press("Enter")
    panel.unit(0, "save_preset").click()
    panel.until(lambda: panel.unit(0, "preset_note").inner_text().strip(), 'Saved preset "from the page".')
    panel.set_number(0, "weight", 1)
    panel.choose(0, "fit", "crop")
    name.click()
    panel.page.locator("ul.options li").filter(has_text="from the page").first.click()
    panel.until(lambda: panel.number(0, "weight"), 0.35)
    panel.until(lambda: panel.choice(0, "fit"), "pad")
    # F3: it is there in each unit of both tabs, and after the page was loaded anew.
    panel.until(lambda: "from the page" in presets(panel, 1), True)
    load(panel.page, url)
    again = PanelPage(panel.page).open()
    again.until(lambda: "from the page" in presets(again, 2), True)
    panel.page.locator("#tabs > .tab-nav button", has_text="img2img").click()
    other = PanelPage(panel.page, "img2img").open()
    other.until(lambda: "from the page" in presets(other, 0), True)
    panel.page.locator("#tabs > .tab-nav button", has_text="txt2img").click()
    again.show_unit(0)
    again.unit(0, "preset").locator("input").click()
    again.page.locator("ul.options li").filter(has_text="from the page").first.click()
    # F11: the page asks first.
    answers: list[str] = []

    def answer(dialog: Any) -> None:
        answers.append(dialog.message)
        dialog.accept() if len(answers) == 3 else dialog.dismiss()

    again.page.on("dialog", answer)
    again.unit(0, "save_preset").click()
    again.unit(0, "delete_preset").click()
    again.until(lambda: answers, ['Replace the preset "from the page"?', 'Delete the preset "from the page"?'])
    again.page.wait_for_timeout(500)
    again.page.wait_for_function("!window.waiting")
    assert again.unit(0, "preset_note").inner_text().strip() == ""
    again.unit(0, "delete_preset").click()
    again.until(lambda: "Deleted" in again.unit(0, "preset_note").inner_text(), True)
    assert len(answers) == 3
    again.until(lambda: "from the page" in presets(again, 1), False)
    again.page.remove_listener("dialog", answer)


def presets(panel: PanelPage, index: int) -> list[str]:
    """Those that a unit lists."""
    panel.show_unit(index)
    return panel.listed(index, "preset")
