"""The tab of trainings and evaluations on the real page: from a folder of pictures to an adapter that is chosen in the
panel and draws, and to a table of adapters and weights."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib_ipadapter.runs.folder import RunFolder
from tests.small_clip import write_clip
from tests.webui import harness
from tests.webui.with_page import WithPage

from .conftest import Lean, load
from .pages import PanelPage, picture, upload
from .test_generate import generate

SMALL = {"resolution": 64, "steps": 4, "batch": 2, "workers": 0, "lr": 0.01, "save_every": 2, "sample_every": 2,
         "sample_steps": 2, "validation_every": 2, "validation_count": 2, "buckets": False}  # fmt: skip

ENDLESS = {**SMALL, "steps": 100_000, "sample_every": 0, "save_every": 50_000, "validation_every": 50_000}


@pytest.fixture(scope="module")
def webui() -> Iterator[WithPage]:
    if reason := harness.absent():
        pytest.skip(reason)
    with Lean() as running:
        write_clip(running.data / "models" / "clip_vision")
        try:
            yield running
        finally:
            for noted in (running.data / "models" / "ipadapter").glob("*/*/process.json"):
                found = RunFolder(noted.parent).process()
                if found:
                    found[0].terminate()


@pytest.fixture
def tab(browser: Any, webui: WithPage) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    page.set_default_timeout(30_000)
    load(page, webui.url)
    page.locator("#tabs > .tab-nav button", has_text="IP-Adapter training").click()
    page.wait_for_function("document.querySelector('#ipadapter_train_text textarea').value.includes('steps')")
    yield page
    page.close()


def box(page: Any, name: str, part: str = "train") -> Any:
    return page.locator(f"#ipadapter_{part}_{name} textarea, #ipadapter_{part}_{name} input").first


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("IPADAPTER_SHOTS"):
        page.locator("#tab_ipadapter_train").screenshot(path=str(Path(folder) / f"train-{name}.png"))


def pictures(webui: WithPage) -> Path:
    """Four pictures with captions, and a broken one."""
    data = webui.data / "pictures"
    data.mkdir(exist_ok=True)
    for i in range(4):
        (data / f"{i}.png").write_bytes(picture(i))
        (data / f"{i}.txt").write_text(f"picture {i}")
    return data


def said(page: Any, part: str = "train") -> str:
    """What stands below the buttons."""
    return page.locator(f"#ipadapter_{part}_said").first.inner_text()


def seen(page: Any, part: str = "train") -> str:
    """The run that is shown."""
    return page.locator(f"#ipadapter_{part}_state").first.inner_text()


def start(page: Any, name: str, fields: dict[str, Any], part: str = "train") -> None:
    box(page, "text", part).fill(yaml.safe_dump(fields))
    box(page, "name", part).fill(name)
    page.click(f"#ipadapter_{part}_start")


def over(page: Any, name: str, part: str = "train") -> bool:
    """Whether the run is shown, and has ended."""
    state = page.locator(f"#ipadapter_{part}_state [data-alive='0'] strong")
    return state.count() > 0 and state.first.inner_text() == name


def test_from_a_folder_to_an_adapter_that_draws(tab: Any, webui: WithPage):
    data = pictures(webui)
    (data / "broken.png").write_bytes(b"no picture")
    box(tab, "data").fill(str(data))
    tab.wait_for_function("path => document.querySelector('#ipadapter_train_text textarea').value.includes(path)",
                          arg=str(data))  # fmt: skip
    tab.click("#ipadapter_train_look")
    tab.wait_for_selector(".ipadapter-look meter")
    looked = tab.locator("#ipadapter_train_seen").first.inner_text()
    assert "Pictures\n5" in looked
    assert "1 cannot be read and will be passed over: broken.png" in looked
    given = yaml.safe_load(box(tab, "text").input_value())
    assert given["base"].endswith("sd1.safetensors")
    assert given["variant"] == "base"
    box(tab, "text").fill("steps: [")
    box(tab, "name").fill("mine")
    tab.click("#ipadapter_train_start")
    PanelPage(tab).until(lambda: "plain YAML" in said(tab), True)
    shot(tab, "refused")
    (data / "broken.png").unlink()
    start(tab, "mine", {**given, **SMALL, "validation": str(data)})
    PanelPage(tab).until(lambda: over(tab, "mine"), True, 100)
    assert "mine done" in seen(tab)
    page = PanelPage(tab)
    page.until(lambda: said(tab), "")  # that it was started is over with it
    page.until(tab.locator("#ipadapter_train_state figure img").count, 2)
    page.until(tab.locator(".ipadapter-losses circle").count, 2)
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
    PanelPage(tab).until(lambda: "mine done" in seen(tab), True)


def test_adapters_are_measured(tab: Any, webui: WithPage):
    data = pictures(webui)
    tab.locator("#ipadapter_train_parts button", has_text="Evaluate").click()
    page = PanelPage(tab)
    page.until(lambda: "weights" in box(tab, "text", "evaluate").input_value(), True)
    box(tab, "data", "evaluate").fill(str(webui.data / "config_states"))
    tab.click("#ipadapter_evaluate_start")
    page.until(lambda: "type a name first" in said(tab, "evaluate"), True)
    box(tab, "name", "evaluate").fill("both")
    tab.click("#ipadapter_evaluate_start")
    page.until(lambda: "no pictures in it" in said(tab, "evaluate") or "no such folder" in said(tab, "evaluate"), True)
    shot(tab, "evaluate-refused")
    box(tab, "data", "evaluate").fill(str(data))
    page.until(lambda: "config_states" not in box(tab, "text", "evaluate").input_value(), True)
    tab.click("#ipadapter_evaluate_start")
    page.until(lambda: "choose at least one adapter" in said(tab, "evaluate"), True)
    for name in ("sd1-base", "sd1-plus"):
        box(tab, "adapters", "evaluate").click()
        options = tab.locator("#ipadapter_evaluate_adapters ul.options li")
        assert not options.filter(has_text="sdxl").count(), "only those that fit are listed"
        options.filter(has_text=name).first.click()
        page.until(lambda name=name: name in box(tab, "text", "evaluate").input_value(), True)
    given = yaml.safe_load(box(tab, "text", "evaluate").input_value())
    assert given["adapter"] == ["sd1-base", "sd1-plus"]
    assert given["weights"] == [0, 0.25, 0.5, 0.75, 1]
    assert given["references"] == str(data)
    start(tab, "both", {**given, "weights": [0, 0.5, 1], "steps": 2, "width": 64, "height": 64}, "evaluate")
    page.until(lambda: over(tab, "both", "evaluate"), True, 100)
    assert "both done" in seen(tab, "evaluate")
    found = tab.locator("#ipadapter_evaluate_state")
    assert found.locator(".ipadapter-table tbody tr").count() >= 6
    assert found.locator(".ipadapter-curve-of polyline").count() == 4
    tab.wait_for_function("document.querySelector('#ipadapter_evaluate_state figure img')?.naturalWidth > 300")
    shot(tab, "evaluate-light")
    tab.evaluate("document.body.classList.add('dark')")
    shot(tab, "evaluate-dark")


def test_a_killed_training_a_full_disk_and_a_broken_config_are_said(tab: Any, webui: WithPage):
    data, page = pictures(webui), PanelPage(tab)
    given = yaml.safe_load(box(tab, "text").input_value())
    root = webui.data / "models" / "ipadapter" / "training" / "killed"
    (root.parent / "earlier").mkdir(parents=True)
    (root.parent / "earlier" / "run.yaml").write_text("steps: 7")
    start(tab, "killed", {**given, **ENDLESS, "data": str(data)})
    page.until(lambda: "killed training" in seen(tab), True, 100)
    box(tab, "name").fill("")
    tab.evaluate("document.querySelector('#ipadapter_train_list').click()")  # what a fresh page does
    page.until(lambda: box(tab, "name").input_value(), "killed")
    page.until(lambda: yaml.safe_load(box(tab, "text").input_value())["steps"], ENDLESS["steps"])
    os.kill(json.loads((root / "process.json").read_text())["pid"], signal.SIGKILL)
    page.until(lambda: over(tab, "killed"), True)
    assert "killed killed" in seen(tab)
    assert "without a word: it was killed, by somebody or because memory ran out. Start it again" in seen(tab)
    shot(tab, "killed")
    (root / "log.txt").write_text("error: run: cannot be written to: No space left on device. Make room\n")
    tab.evaluate("document.querySelector('#ipadapter_train_poll').click()")
    page.until(lambda: "No space left on device. Make room" in seen(tab), True)
    assert "killed failed" in seen(tab)
    start(tab, "broken", {**given, **SMALL, "stepz": 3})
    page.until(lambda: "did you mean steps" in said(tab), True)
    for name, steps in (("earlier", 7), ("killed", ENDLESS["steps"])):  # to go on with it
        box(tab, "runs").click()
        tab.locator("#ipadapter_train_runs ul.options li").filter(has_text=name).first.click()
        page.until(lambda: box(tab, "name").input_value(), name)
        page.until(lambda: yaml.safe_load(box(tab, "text").input_value())["steps"], steps)
        if name == "earlier":  # a folder that is typed changes nothing else, whatever the other controls show
            box(tab, "data").fill("elsewhere")
            page.until(lambda: yaml.safe_load(box(tab, "text").input_value()), {"steps": 7, "data": "elsewhere"})
    page.until(lambda: box(tab, "data").input_value(), str(data))
    (root / "run.yaml").write_text("steps: [")
    tab.evaluate("document.querySelector('#ipadapter_train_poll').click()")
    page.until(lambda: "plain YAML" in seen(tab), True)
