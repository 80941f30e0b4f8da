"""Chromium on the real WebUI's page. Without either, the tests are skipped and say so."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.pictures.images import content_hash
from lib_ipadapter.pictures.images import load as load_picture
from tests.webui import harness

from .pages import ARGS, PanelPage

# The page asks other hosts for fonts; after a generation gradio misses a component, without us as well.
_HARMLESS = ("net::ERR", "Failed to load resource", "reading 'props'")


# A slow server: answers to the panel's events come window.slow milliseconds later.
SLOW = """
const real = window.fetch;
window.slow = 0;
window.fetch = async (...given) => {
    const ms = String(given[0]?.url ?? given[0]).includes("predict") ? window.slow : 0;
    const answer = await real(...given);
    if (ms) await new Promise(resolve => setTimeout(resolve, ms));
    return answer;
};
"""


# A seventh of the page; each test loads it.
UNUSED = ("Extensions", "Train", "Checkpoint Merger")


class WithPage(harness.WebUI):
    """With its page, the WebUI must not be asked anything before it is up: a request between the launch of
    the page and that of the API starts the app too early, and the process ends."""

    def _wait(self, deadline: float) -> None:
        self.says("Startup time", 1, deadline)
        super()._wait(deadline)

    def says(self, text: str, times: int, deadline: float) -> bool:
        """Waits until the log has ``text`` so often."""
        while self.log.count(text) < times and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.3)
        return self.log.count(text) >= times


@pytest.fixture(scope="session")
def server() -> Iterator[WithPage | None]:
    """A WebUI with the extension, started for these tests; None where IPADAPTER_TEST_URL names a running one."""
    if os.environ.get("IPADAPTER_TEST_URL"):
        yield None
        return
    if harness.absent():
        pytest.skip(harness.absent())
    with WithPage(("sd1",), extra=(), config={"hidden_tabs": list(UNUSED)}) as webui:
        yield webui


@pytest.fixture(scope="session")
def url(server: WithPage | None) -> str:
    """The address of the WebUI."""
    return server.url if server else os.environ["IPADAPTER_TEST_URL"].rstrip("/")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium; set CHROMIUM to its executable")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(ARGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The WebUI's page, fully loaded. The test fails when the page reported an error of its own."""
    context = browser.new_context(viewport={"width": 1400, "height": 1500})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.add_init_script(SLOW)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    load(page, url)
    yield page
    context.close()
    assert [text for text in errors if not any(part in text for part in _HARMLESS)] == []


def load(page: Any, url: str, query: str = "") -> None:
    """Opens the page and waits until the WebUI's scripts have run."""
    page.goto(f"{url}/{query}")
    page.wait_for_selector("#ipadapter_txt2img-visible-checkbox", state="attached", timeout=120_000)


@pytest.fixture
def panel(page: Any) -> PanelPage:
    """txt2img's panel, open."""
    return PanelPage(page).open()


@pytest.fixture(scope="session")
def hash_of() -> Callable[[bytes], str]:
    """The hash by which an infotext names a picture."""
    return lambda data: content_hash(load_picture(Image.open(io.BytesIO(data))))
