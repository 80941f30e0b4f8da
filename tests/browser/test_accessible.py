"""The panel and its dialogs by axe-core (WCAG 2 A and AA), and by the keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .pages import PanelPage, upload
from .test_looks import box, numbers

RUN = """async selector => {
    const found = await axe.run(selector, {runOnly: ["wcag2a", "wcag2aa", "wcag21aa"]});
    return found.violations.map(one => `${one.id}: ${one.nodes.map(node => node.html.slice(0, 120)).join(" | ")}`);
}"""


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def test_no_violation_with_everything_unfolded(page: Any, axe: str):
    panel = PanelPage(page).open()
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.choose_model(0, "sd1-base")
    for name in ("saved", "where", "fine", "look", "follow"):
        panel.unfold(0, name)
    panel.until(lambda: "found" in panel.info(), True)
    page.evaluate(axe)

    def clean(selector: str) -> None:
        """What fades in has its colour a moment later."""
        panel.until(lambda: page.evaluate(RUN, selector), [], 5)

    for dark in (False, True):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)  # as ?__theme= does
        page.wait_for_timeout(500)
        clean("#ipadapter_txt2img")
        panel.unit(0, "thumbnails").locator(".ipadapter-open").first.click()
        page.locator("dialog.ipadapter-crop").wait_for()
        clean("dialog.ipadapter-crop")
        page.keyboard.press("Escape")
        panel.unit(0, "mask_pad").locator(".ipadapter-paint").click()
        page.wait_for_selector("dialog.ipadapter-mask[open]")
        clean("dialog.ipadapter-mask")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog.ipadapter-mask", state="detached")


def test_the_keyboard_alone_adds_and_crops(page: Any, panel: PanelPage):
    """F25."""
    adder = panel.unit(0, "thumbnails").locator(".ipadapter-adder")
    adder.focus()
    with page.expect_file_chooser() as chosen:
        adder.press("Enter")
    chosen.value.set_files(upload(0))
    panel.until(panel.thumbs, 1)
    opened = panel.unit(0, "thumbnails").locator(".ipadapter-open")
    opened.focus()
    opened.press("Enter")
    left = page.locator(".ipadapter-sides input").first
    left.fill("25")
    left.press("Tab")
    page.locator("dialog.ipadapter-crop button[value=use]").press("Enter")
    panel.until(lambda: numbers(box(panel)), [[0.25, 0, 1, 1]])


def test_the_keyboard_unfolds_the_panel_and_its_groups(page: Any):
    """F25: gradio 3's headers are no buttons."""
    panel = PanelPage(page)
    page.locator("#ipadapter_txt2img-visible-checkbox").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    panel.until(panel.is_on, True)
    panel.unit(0, "model").wait_for(state="visible")
    group = panel.unit(0, "where").get_by_role("button", name="Region")
    assert group.get_attribute("aria-expanded") == "false"
    group.press("Space")
    panel.unit(0, "region").wait_for(state="visible")
    assert group.get_attribute("aria-expanded") == "true"
    group.press("Enter")
    panel.unit(0, "region").wait_for(state="hidden")


# The place of the tile whose control has the keyboard, and which control that is
HELD = """() => [document.activeElement.closest(".ipadapter-thumb")?.dataset.index,
    document.activeElement.className.split(" ")[0]]"""


def test_the_keyboard_stays_in_the_tiles_when_they_are_drawn_anew(page: Any, panel: PanelPage):
    """F25: a tile that is moved or taken out by keys leaves the next key where it is looked for."""
    panel.add(0, upload(0), upload(1), upload(2))
    panel.until(panel.thumbs, 3)
    first, second, third = panel.sources()
    panel.unit(0, "thumbnails").locator(".ipadapter-open").first.focus()
    page.keyboard.press("Alt+ArrowRight")
    panel.until(panel.sources, [second, first, third])
    panel.until(lambda: page.evaluate(HELD), ["1", "ipadapter-open"])
    page.keyboard.press("Alt+ArrowRight")
    panel.until(panel.sources, [second, third, first])
    panel.until(lambda: page.evaluate(HELD), ["2", "ipadapter-open"])
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").nth(1).focus()
    page.keyboard.press("Enter")
    panel.until(panel.sources, [second, first])
    panel.until(lambda: page.evaluate(HELD), ["1", "ipadapter-remove"])
    page.keyboard.press("Enter")
    panel.until(panel.sources, [second])
    panel.until(lambda: page.evaluate(HELD), ["0", "ipadapter-remove"])
    page.keyboard.press("Enter")
    panel.until(panel.thumbs, 0)
    panel.until(lambda: page.evaluate(HELD), [None, "ipadapter-adder"])
