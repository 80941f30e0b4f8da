"""Chromium on the real WebUI's page. Without either, the tests are skipped and say so."""

from __future__ import annotations

import io
import os
import shutil
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from PIL import Image

from lib_ipadapter.pictures.images import content_hash
from lib_ipadapter.pictures.images import load as load_picture
from tests.webui import harness
from tests.webui.with_page import WithPage

from . import reuse
from .pages import ARGS, PanelPage

# The page asks other hosts for fonts; after a generation gradio misses a component, without us as well.
_HARMLESS = ("net::ERR", "Failed to load resource", "reading 'props'")


# A seventh of the page, which is brought up to date at each event.
UNUSED = ("Extensions", "Train", "Checkpoint Merger")


class Lean(WithPage):
    """Without what these tests do not touch (UNUSED, and the probe's lean.py)."""

    variables: ClassVar[dict[str, str]] = {"PROBE_LEAN": "1"}

    def __init__(self, **config: Any) -> None:
        super().__init__(("sd1",), extra=(), config={"hidden_tabs": list(UNUSED), **config})


class Offline(Lean):
    """A click on Download reaches nobody."""

    variables: ClassVar[dict[str, str]] = {**Lean.variables, "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}


@pytest.fixture(scope="session")
def server() -> Iterator[WithPage | None]:
    """A WebUI with the extension, started for these tests; None where IPADAPTER_TEST_URL names a running one."""
    if os.environ.get("IPADAPTER_TEST_URL"):
        yield None
        return
    if harness.absent():
        pytest.skip(harness.absent())
    with Offline() as webui:
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


@pytest.fixture(scope="session")
def described(url: str) -> str:
    """What gradio answers each page that asks for its description of all endpoints: always the same, after a second
    of work."""
    with urllib.request.urlopen(f"{url}/info", timeout=60) as reply:
        return reply.read().decode()


class Page:
    """The page that tests share as long as it can be put back."""

    def __init__(self, browser: Any, url: str, described: str) -> None:
        self.context = browser.new_context(viewport=reuse.SIZE)
        self.context.route(f"{url}/info", lambda route: route.fulfill(body=described, content_type="application/json"))
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.add_init_script(reuse.WAITING)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        load(self.page, url)
        self.new = reuse.settled(self.page)

    def is_as_new(self) -> bool:
        """Puts the page back; False where that cannot be done."""
        try:
            return not reuse.put_back(self.page, self.new)
        except Exception as error:  # whatever a test left behind, the next one gets another page
            warnings.warn(f"the page was not put back: {error}", stacklevel=2)
            return False


@pytest.fixture(scope="session")
def pages(browser: Any, url: str, described: str) -> Iterator[list[Page]]:
    """The page that the last test left, if any."""
    kept: list[Page] = []
    yield kept
    for one in kept:
        one.context.close()


@pytest.fixture
def page(browser: Any, url: str, described: str, pages: list[Page]) -> Iterator[Any]:
    """The WebUI's page, fully loaded, as new. The test fails when the page reported an error of its own."""
    if not pages:
        pages.append(Page(browser, url, described))
    (one,) = pages
    yield one.page
    errors = [text for text in one.errors if not any(part in text for part in _HARMLESS)]
    one.errors.clear()
    if errors or not one.is_as_new():
        pages.clear()
        one.context.close()
    assert errors == []


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
