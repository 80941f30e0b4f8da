"""The charts of layers and steps in the real page: they follow the controls, and the curve's points are dragged."""

from __future__ import annotations

from typing import Any

import pytest

from .pages import PanelPage


@pytest.fixture
def fine(panel: PanelPage) -> PanelPage:
    """The panel with the section of layers and steps unfolded."""
    panel.unit(0, "fine").locator(".label-wrap").first.click()
    charts(panel).locator(".ipadapter-curve circle").first.wait_for(state="visible")
    return panel


def charts(panel: PanelPage) -> Any:
    return panel.unit(0, "charts")


def text(panel: PanelPage, name: str) -> Any:
    return panel.unit(0, name).locator("textarea, input")


def weights(panel: PanelPage) -> list[str]:
    """The chart's first column, by layer."""
    cells = charts(panel).locator(".ipadapter-layers rect title").all_text_contents()
    return [cell.rpartition(": ")[2] for cell in cells[::20]]


def centre(panel: PanelPage, index: int) -> tuple[float, float]:
    circle, box = charts(panel).locator("circle").nth(index), None
    while box is None:  # it may be drawn anew meanwhile
        circle.wait_for()
        box = circle.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_chart_follows_type_and_weight(fine: PanelPage):
    fine.until(lambda: weights(fine), ["1"] * 16)
    fine.set_number(0, "weight", 0.5)
    fine.until(lambda: weights(fine), ["0.5"] * 16)
    fine.unit(0, "weight_type").locator("input").click()
    fine.page.locator("ul.options li").filter(has_text="weak middle").first.click()
    fine.until(lambda: weights(fine), ["0.5"] * 6 + ["0.1"] + ["0.5"] * 9)


def test_a_table_of_layers_and_what_is_wrong_with_it(fine: PanelPage):
    text(fine, "layers").fill("0-1:1, 15:-1")
    fine.until(lambda: weights(fine), ["1", "1", *["0"] * 13, "-1"])
    text(fine, "layers").fill("0-1:1, 15:-1, 15:2")
    fine.until(lambda: "Weight per layer: got" in charts(fine).inner_text(), True)
    text(fine, "layers").fill("")
    fine.until(lambda: weights(fine), ["1"] * 16)


def test_what_is_wrong_is_said_and_the_curve_stays(fine: PanelPage):
    """F15: a broken curve can be dragged right, and Start says at its place that it is after End."""
    text(fine, "curve").fill("2:x")
    fine.until(lambda: "Weight over steps: got" in charts(fine).inner_text(), True)
    page = fine.page
    charts(fine).locator(".ipadapter-curve").scroll_into_view_if_needed()
    x, y = centre(fine, 0)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 15, steps=4)
    page.mouse.up()
    fine.until(lambda: "Weight over steps: got" in charts(fine).inner_text(), False)
    assert text(fine, "curve").input_value().startswith("0:0.")
    fine.set_number(0, "start", 0.8)
    fine.set_number(0, "end", 0.3)
    note = fine.unit(0, "timing_note")
    fine.until(lambda: "Start (0.8) is after End" in note.inner_text(), True)
    fine.set_number(0, "start", 0.1)
    fine.until(lambda: note.inner_text().strip(), "")


def test_points_are_dragged_added_and_taken_out(fine: PanelPage):
    page = fine.page
    charts(fine).locator(".ipadapter-curve").scroll_into_view_if_needed()
    page.mouse.move(*centre(fine, 0))
    page.mouse.down()
    x, y = centre(fine, 0)
    page.mouse.move(x, y + 15, steps=4)
    page.mouse.up()
    fine.until(lambda: text(fine, "curve").input_value().startswith("0:0."), True)
    # The chart of the steps follows: the first one's weight is smaller.
    fine.until(lambda: 0 < float(weights(fine)[0]) < 1, True)

    frame = charts(fine).locator(".frame").bounding_box()
    page.mouse.dblclick(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 4)
    fine.until(lambda: charts(fine).locator("circle").count(), 3)
    fine.until(lambda: ", 0.5:1.5" in text(fine, "curve").input_value(), True)
    page.mouse.dblclick(*centre(fine, 1))
    fine.until(lambda: charts(fine).locator("circle").count(), 2)

    text(fine, "curve").fill("0:0, 1:4")
    fine.until(lambda: charts(fine).locator(".ipadapter-curve").get_attribute("data-top"), "4")
    fine.until(lambda: charts(fine).locator("circle").count(), 2)


def test_the_keyboard_moves_adds_and_takes_out_points(fine: PanelPage):
    """F25: a point keeps the keyboard when the server draws the chart again."""
    page, circles = fine.page, charts(fine).locator(".ipadapter-curve circle")
    circles.first.focus()
    page.keyboard.press("ArrowDown")
    fine.until(lambda: text(fine, "curve").input_value(), "0:0.95, 1:1")
    fine.until(lambda: 0.9 < float(weights(fine)[0]) < 1, True)  # the server has drawn it
    page.keyboard.press("Enter")
    fine.until(lambda: text(fine, "curve").input_value(), "0:0.95, 0.5:0.98, 1:1")
    page.keyboard.press("ArrowRight")
    fine.until(lambda: text(fine, "curve").input_value(), "0:0.95, 0.55:0.98, 1:1")
    page.wait_for_timeout(700)
    named = "document.activeElement.getAttribute('aria-valuetext')"
    fine.until(lambda: page.evaluate(named), "factor 0.98 at 55 % of the sampling")
    page.keyboard.press("Delete")
    fine.until(lambda: text(fine, "curve").input_value(), "0:0.95, 1:1")


def test_the_charts_can_be_read(fine: PanelPage):
    """F27: the labels are as large as small print, and none lies on another one."""
    labels = charts(fine).locator("text").all()
    boxes = [label.bounding_box() for label in labels]
    assert min(box["height"] for box in boxes) >= 9
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            apart_y = one["y"] + one["height"] <= other["y"] + 3 or other["y"] + other["height"] <= one["y"] + 3
            assert apart_x or apart_y
