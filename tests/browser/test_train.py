"""The Train tab on the real page: from a folder of pictures to an adapter that is chosen in the panel and draws."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.webui import harness

from .conftest import WithPage, load
from .pages import PanelPage, picture, upload
from .test_generate import generate

SMALL = {"resolution": 64, "steps": 4, "batch": 2, "workers": 0, "lr": 0.01, "save_every": 2, "sample_every": 2,
         "sample_steps": 2, "validation_every": 2, "validation_count": 2, "buckets": False}  # fmt: skip


@pytest.fixture(scope="module")
def webui() -> Iterator[WithPage]:
    if reason := harness.absent():
        pytest.skip(reason)
    with WithPage(("sd1",), extra=()) as running:
        try:
            yield running
        finally:
            for noted in (running.data / "models" / "ipadapter" / "training").glob("*/process.json"):
                pid = yaml.safe_load(noted.read_text())["pid"]
                if (
                    b"lib_ipadapter" in Path(f"/proc/{pid}/cmdline").read_bytes()
                    if Path(f"/proc/{pid}").exists()
                    else 0
                ):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tab(browser: Any, webui: WithPage) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    page.set_default_timeout(30_000)
    load(page, webui.url)
    page.locator("#tabs > .tab-nav button", has_text="IP-Adapter training").click()
    page.wait_for_function("document.querySelector('#ipadapter_train_text textarea').value.includes('steps')")
    yield page
    page.close()


def box(page: Any, name: str) -> Any:
    return page.locator(f"#ipadapter_train_{name} textarea, #ipadapter_train_{name} input").first


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("IPADAPTER_SHOTS"):
        page.locator("#tab_ipadapter_train").screenshot(path=str(Path(folder) / f"train-{name}.png"))


def over(page: Any) -> bool:
    """Whether a training is shown that has ended."""
    shot(page, "now")
    return page.locator("#ipadapter_train_state [data-alive='0']").count() > 0


def test_from_a_folder_to_an_adapter_that_draws(tab: Any, webui: WithPage):
    data = webui.data / "pictures"
    data.mkdir()
    for i in range(4):
        (data / f"{i}.png").write_bytes(picture(i))
        (data / f"{i}.txt").write_text(f"picture {i}")
    (data / "broken.png").write_bytes(b"no picture")
    box(tab, "data").fill(str(data))
    tab.wait_for_function("path => document.querySelector('#ipadapter_train_text textarea').value.includes(path)",
                          arg=str(data))  # fmt: skip
    tab.click("#ipadapter_train_look")
    tab.wait_for_selector(".ipadapter-look meter")
    seen = tab.locator("#ipadapter_train_seen").first.inner_text()
    assert "5 pictures" in seen
    assert "1 cannot be read and will be passed over: broken.png" in seen
    given = yaml.safe_load(box(tab, "text").input_value())
    assert given["base"].endswith("sd1.safetensors")
    assert given["variant"] == "base"
    box(tab, "text").fill("steps: [")
    box(tab, "name").fill("mine")
    tab.click("#ipadapter_train_start")
    tab.wait_for_function("document.querySelector('#ipadapter_train_said').innerText.includes('plain YAML')")
    shot(tab, "refused")
    box(tab, "text").fill(yaml.safe_dump({**given, **SMALL, "validation": str(data)}))
    tab.click("#ipadapter_train_start")
    PanelPage(tab).until(lambda: over(tab), True, 100)
    assert "mine: done" in tab.locator("#ipadapter_train_state").first.inner_text()
    assert tab.locator("#ipadapter_train_state figure img").count() == 2
    assert tab.locator(".ipadapter-losses circle").count() == 2
    shot(tab, "light")
    tab.evaluate("document.body.classList.add('dark')")
    shot(tab, "dark")
    tab.evaluate("document.body.classList.remove('dark')")
    tab.wait_for_timeout(4000)  # the page asks for the lists in two seconds; those of an open one stay as they are
    tab.locator("#tabs > .tab-nav button", has_text="txt2img").click()
    panel = PanelPage(tab).open()
    panel.choose_model(0, "mine")
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    for name, value in (("steps", 2), ("width", 64), ("height", 64)):
        field = tab.locator(f"#txt2img_{name} input[type=number]").first
        field.fill(str(value))
        field.blur()
    generate(tab)
    tab.reload()
    load(tab, webui.url)
    tab.locator("#tabs > .tab-nav button", has_text="IP-Adapter training").click()
    tab.wait_for_function("document.querySelector('#ipadapter_train_state').innerText.includes('mine: done')")
