"""Where the panel's parts stand, at the widths of a phone, a tablet and a desk; and what is said before anything is
asked for."""

from __future__ import annotations

from collections.abc import Iterator

from .pages import PanelPage, upload

WIDTHS = (390, 660, 700, 1400, 2560)


def places(panel: PanelPage, *names: str) -> list[dict[str, float]]:
    """The boxes of a unit's components, read at once, when the page has come to rest."""
    ids = [f"{panel.root[1:]}_0_{name}" for name in names]
    read = """ids => ids.map(id => {
        const {x, y, width, height} = document.getElementById(id).getBoundingClientRect();
        return {x, y, width, height};
    })"""
    last = panel.page.evaluate(read, ids)
    for _ in range(50):
        panel.page.wait_for_timeout(200)
        now = panel.page.evaluate(read, ids)
        if now == last:
            return now
        last = now
    raise AssertionError("the page does not come to rest")


def filled(panel: PanelPage) -> PanelPage:
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "found" in panel.unit(0, "info").inner_text(), True)
    return panel


def at(panel: PanelPage, *widths: int) -> Iterator[int]:
    """The same panel at each width of the page."""
    for width in widths:
        panel.page.set_viewport_size({"width": width, "height": 1600})
        panel.page.wait_for_timeout(300)
        yield width


def test_nothing_leaves_the_panel_and_lines_keep_their_distance(panel: PanelPage):
    """F26: Remove all from the head's buttons, what a file is from the weight; and nothing is squeezed."""
    filled(panel)
    names = ("weight", "start", "end", "weight_type", "fit", "preset", "menu", "delete_preset", "clear", "info")
    for width in at(panel, *WIDTHS):
        found = dict(zip(names, places(panel, *names), strict=True))
        whole = panel.page.locator(panel.root).bounding_box()
        for name in names[:7]:
            assert found[name]["x"] >= whole["x"], (width, name)
            assert found[name]["x"] + found[name]["width"] <= whole["x"] + whole["width"], (width, name)
            assert found[name]["width"] >= 80 or name == "menu", (width, name)
        for upper, lower in (("delete_preset", "clear"), ("info", "weight")):
            gap = found[lower]["y"] - (found[upper]["y"] + found[upper]["height"])
            assert gap >= 4, (width, upper, lower)


def test_no_line_of_the_head_has_buttons_alone(panel: PanelPage):
    """The menu stands beside Enable, or all on one line; the preset's buttons beside the preset, small as all tools."""

    def shares_line(one: dict[str, float], other: dict[str, float]) -> bool:
        return one["y"] < other["y"] + other["height"] and other["y"] < one["y"] + one["height"]

    for width in at(panel, *WIDTHS):
        enabled, preset, save, delete, menu = places(panel, "enabled", "preset", "save_preset", "delete_preset", "menu")
        assert shares_line(menu, enabled), width
        assert shares_line(save, preset), width
        assert shares_line(delete, preset), width
        assert {round(button["width"]) for button in (save, delete, menu)} == {round(menu["width"])}, width
        assert menu["width"] < 50, width


def test_the_label_of_negatives_stands_over_their_drop_zone(panel: PanelPage):
    """F21: it lay on the zone's words, and the zone had no border."""
    panel.unfold(0, "look")
    field = panel.unit(0, "negative")
    zone = field.locator(".center")
    zone.wait_for(state="visible")
    for width in at(panel, 390, 1400):
        label, area = field.locator("[data-testid=block-label]").bounding_box(), zone.bounding_box()
        assert label["y"] + label["height"] <= area["y"] + 1, width
        assert label["height"] >= 10, width
    assert zone.evaluate("zone => getComputedStyle(zone).borderTopWidth") == "1px"


def test_lines_with_boxes_to_tick_have_room(panel: PanelPage):
    """At 600 pixels the number of Feather lay on its label, and In detailers showed two letters of its choice."""
    panel.unfold(0, "where")
    panel.unfold(0, "follow")
    panel.unit(0, "in_detailer").wait_for(state="visible")
    feather = panel.unit(0, "feather")
    label, typed = feather.locator("label").first, feather.locator("input[type=number]")
    for width in at(panel, 600, 700, 1400):
        places(panel, "feather", "in_detailer")
        words = label.evaluate("""label => {
            const range = document.createRange();
            range.selectNodeContents(label);
            return range.getBoundingClientRect().right;
        }""")
        number, whole = typed.bounding_box(), feather.bounding_box()
        assert words + 4 <= number["x"], width
        assert number["x"] + number["width"] <= whole["x"] + whole["width"] + 1, width
        assert panel.unit(0, "in_detailer").bounding_box()["width"] >= 100, width


def test_the_choices_of_a_region_are_on_one_line(panel: PanelPage):
    panel.unfold(0, "where")
    labels = panel.unit(0, "region").locator("label:visible")
    panel.until(lambda: [text.strip() for text in labels.all_inner_texts()], ["mask", "inpaint", "face"])
    heights = "labels => new Set(labels.map(label => Math.round(label.getBoundingClientRect().top))).size"
    panel.until(lambda: labels.evaluate_all(heights), 1)


def test_a_mask_shows_for_its_region_alone(panel: PanelPage):
    filled(panel)
    panel.unfold(0, "where")
    panel.edit_mask(0, "mask", "left")
    panel.until(lambda: panel.state(0, "where"), "mask")
    panel.choose(0, "region", "face")
    panel.until(lambda: panel.unit(0, "mask_area").is_visible(), False)
    panel.until(lambda: panel.state(0, "where"), "region face")
    panel.choose(0, "region", "mask")
    panel.until(lambda: panel.unit(0, "mask_area").is_visible(), True)
    panel.until(lambda: panel.state(0, "where"), "mask")


def test_a_unit_with_a_picture_and_no_model_says_so(panel: PanelPage):
    """Several adapters fit, so none is taken without being asked for."""
    assert panel.unit(0, "info").inner_text().strip() == ""
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    if panel.model(0) == "None":
        panel.until(lambda: "Choose a model" in panel.unit(0, "info").inner_text(), True)
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "Choose a model" in panel.unit(0, "info").inner_text(), False)
    panel.choose(0, "model", "None")
    panel.until(lambda: "Choose a model" in panel.unit(0, "info").inner_text(), True)
    panel.unit(0, "clear").click()
    panel.until(lambda: panel.unit(0, "info").inner_text().strip(), "")


def test_what_needs_several_references_shows_with_several(panel: PanelPage):
    assert not panel.unit(0, "combine").is_visible()
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.until(lambda: panel.unit(0, "combine").is_visible(), True)
    panel.until(lambda: panel.unit(0, "distribute").is_visible(), True)
    panel.choose(0, "distribute", "one per picture")  # nothing is combined then
    panel.until(lambda: panel.unit(0, "combine").is_visible(), False)
    panel.choose(0, "distribute", "together")
    panel.until(lambda: panel.unit(0, "combine").is_visible(), True)


def test_dialogs_and_menus_look_like_the_page(panel: PanelPage):
    """They stand outside of gradio's container, whose styles do not reach them."""
    font = "element => getComputedStyle(element).fontFamily"
    own = panel.page.locator(f"{panel.root} .label-wrap").first.evaluate(font)
    panel.unit(0, "menu").click()
    item = panel.page.get_by_role("menuitem").first
    assert item.evaluate(font) == own
    assert item.evaluate("element => getComputedStyle(element).borderTopStyle") == "none"
    panel.page.keyboard.press("Escape")
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.unit(0, "thumbnails").locator(".ipadapter-open").first.click()
    title = panel.page.locator("dialog.ipadapter-crop h2")
    assert title.inner_text() == "Crop the reference image"
    assert title.evaluate(font) == own
    panel.page.keyboard.press("Escape")
    panel.unfold(0, "where")
    panel.unit(0, "mask_pad").locator(".ipadapter-paint").click()
    tool = panel.page.locator("dialog.ipadapter-mask .ipadapter-tool").first
    tool.wait_for(state="visible")
    assert tool.evaluate(font) == own
    panel.page.keyboard.press("Escape")


def test_on_a_phone_the_regions_and_the_crop_dialog_s_buttons_stand_on_one_line(panel: PanelPage):
    page = panel.page
    page.set_viewport_size({"width": 390, "height": 1600})
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.unfold(0, "where")
    panel.unfold(0, "look")
    heights = "labels => new Set(labels.map(label => Math.round(label.getBoundingClientRect().top))).size"
    panel.until(lambda: panel.unit(0, "region").locator("label:visible").evaluate_all(heights), 1)
    icon = panel.unit(0, "negative").locator('[data-testid="block-label"] svg').bounding_box()
    assert icon["width"] >= 8  # it was squeezed to a dot
    panel.unit(0, "thumbnails").locator(".ipadapter-open").first.click()
    buttons = page.locator(".ipadapter-crop button:visible")
    buttons.first.wait_for()
    panel.until(lambda: buttons.evaluate_all(heights), 1)
