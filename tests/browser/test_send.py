"""The button "Send to IP-Adapter" under the result galleries, and Reload UI."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.webui import harness
from tests.webui.with_page import WithPage

from .conftest import load
from .pages import PanelPage, upload

TABS = ("txt2img", "img2img", "extras")


def open_tab(page: Any, name: str) -> None:
    page.locator("#tabs > .tab-nav button", has_text=name).first.click()


def one_of_each(page: Any) -> None:
    for tab in TABS:
        assert page.locator(f"#{tab}_send_to_ipadapter").count() == 1
    assert page.locator("#ipadapter_txt2img, #ipadapter_img2img").count() == 2


def run_extras(page: Any, seed: int) -> None:
    open_tab(page, "Extras")
    clear = page.locator("#extras_image button[aria-label='Clear']")
    if clear.count():
        clear.click()
    page.locator("#extras_image input[type=file]").set_input_files(upload(seed))
    page.locator("#extras_image img").first.wait_for()
    page.locator("#extras_generate").click()
    page.locator("#extras_gallery img").first.wait_for(timeout=60_000)
    page.locator("#extras_generate").wait_for(state="visible")


def test_from_extras_into_the_first_unit_without_pictures(page: Any):
    run_extras(page, 0)
    panel = PanelPage(page)
    page.locator("#extras_send_to_ipadapter").click()
    panel.until(panel.thumbs, 1)
    panel.until(panel.title, "IP-Adapter [1]")
    assert panel.unit(0, "image_area").is_visible()
    open_tab(page, "Extras")
    page.locator("#extras_send_to_ipadapter").click()
    panel.until(lambda: panel.thumbs(1), 1)
    panel.until(panel.title, "IP-Adapter [2]")
    assert panel.unit(1, "image_area").is_visible()
    assert panel.is_on()
    assert panel.sources(0) == panel.sources(1)


def test_from_png_info(page: Any):
    open_tab(page, "PNG Info")
    page.locator("#pnginfo_image input[type=file]").set_input_files(upload(0))
    page.locator("#pnginfo_image img").first.wait_for()
    panel = PanelPage(page)
    page.locator("#pnginfo_send_to_ipadapter").click()
    panel.until(panel.thumbs, 1)
    assert panel.is_on()
    assert page.locator("#pnginfo_send_to_ipadapter").count() == 1


def test_its_icon_is_that_of_no_other_button(page: Any):
    """F23: in img2img it was Interrogate CLIP's."""
    texts = [text.strip() for text in page.locator("#tab_txt2img button, #tab_img2img button").all_text_contents()]
    icon = page.locator("#img2img_send_to_ipadapter").text_content().strip()
    assert texts.count(icon) == 2  # one in each tab


def test_without_a_result_nothing_is_sent(page: Any, url: str):
    load(page, url)
    page.locator("#txt2img_send_to_ipadapter").click()
    page.wait_for_timeout(500)
    panel = PanelPage(page)
    assert (panel.is_on(), panel.thumbs()) == (False, 0)


@pytest.fixture
def fresh() -> Iterator[WithPage]:
    """A WebUI that no other test has used: gradio 3.41 never ends a queued event whose page was closed meanwhile, and
    Reload UI waits for it."""
    if os.environ.get("IPADAPTER_TEST_URL"):
        pytest.skip("a WebUI that others use is not restarted")
    if reason := harness.absent():
        pytest.skip(reason)
    with WithPage(("sd1",), extra=()) as webui:
        yield webui


def test_reload_ui_leaves_one_panel_and_one_button(browser: Any, fresh: WithPage):
    server, page = fresh, browser.new_page(viewport={"width": 1400, "height": 1500})
    load(page, server.url)
    one_of_each(page)
    open_tab(page, "Settings")
    deadline, begun, ended = (
        time.monotonic() + 240,
        *map(server.log.count, ("Startup time", "Restarting UI")),
    )
    page.locator("#settings_restart_gradio").click()
    assert server.says("Restarting UI", ended + 1, deadline)
    page.goto("about:blank")  # the page asks again and again, which can end the next server before it is up
    assert server.says("Startup time", begun + 1, deadline), server.log[-3000:]
    load(page, server.url)
    one_of_each(page)
    panel = PanelPage(page).open()
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    page.close()
