"""The page in another language: the WebUI translates it by localizations/."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.evaluation.stats import Values
from lib_ipadapter.evaluation.table import Results, Row
from tests.webui import harness
from tests.webui.with_page import WithPage

from .conftest import Lean, load
from .pages import PanelPage, upload

# Texts and titles of an element, without those of the model's chips, of choices, and of what has a name in it
TEXTS = """selector => {
    const found = [], root = document.querySelector(selector);
    const skipped = ".ipadapter-info, .ipadapter-layers, .ipadapter-curve, .wrap label, ul.options, style";
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode, element = node.parentElement;
        if (element.closest(skipped) || !element.getClientRects().length) continue;
        found.push(node.data.trim());
    }
    root.querySelectorAll("[title]").forEach(element => {
        if (!element.closest(`${skipped}, .ipadapter-open, .ipadapter-remove`)) found.push(element.title);
    });
    return [...new Set(found)].filter(text => /[A-Za-z]{2}/.test(text) && !/[\\u4e00-\\u9fff]/.test(text));
}"""
# Names, gradio's own words, and the label of the drop zone that lies under the last tile
NAMES = {"IP-Adapter", "IP-Adapter [1]", "Drop File Here", "or", "- or -", "Click to Upload", "Drop, paste or browse"}


@pytest.fixture(scope="module")
def chinese() -> Iterator[WithPage]:
    if os.environ.get("IPADAPTER_TEST_URL"):
        pytest.skip("the language of a WebUI that others use stays")
    if reason := harness.absent():
        pytest.skip(reason)
    with Lean(localization="zh_CN") as webui:
        yield webui


def test_every_text_is_translated(browser: Any, chinese: WithPage):
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    load(page, chinese.url)
    page.locator("#tab_img2img").wait_for(state="attached")
    page.evaluate("switch_to_img2img()")
    panel = PanelPage(page, "img2img").open()
    panel.choose_model(0, "sd1-base")
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    for name in ("saved", "where", "fine", "look", "follow"):
        panel.unfold(0, name)
    panel.choose(0, "weight_type", "style and composition")
    panel.until(panel.unit(0, "composition").is_visible, True)

    def english(selector: str, *known: str) -> set[str]:
        """What the WebUI has not translated; it does so a moment after something is new."""
        page.wait_for_timeout(500)
        return set(page.evaluate(TEXTS, selector)) - NAMES - {*known}

    panel.until(lambda: english("#ipadapter_img2img"), set())
    panel.unit(0, "menu").click()
    panel.until(lambda: english("dialog.ipadapter-menu"), set())
    page.keyboard.press("Escape")
    panel.unit(0, "thumbnails").locator(".ipadapter-open").click()
    page.wait_for_selector("dialog.ipadapter-crop[open]")
    panel.until(lambda: english("dialog.ipadapter-crop", "left", "top", "right", "bottom"), set())
    page.click('dialog.ipadapter-crop button[value="mask"]')
    page.wait_for_selector("dialog.ipadapter-mask[open]")
    panel.until(lambda: english("dialog.ipadapter-mask", "Escape", "Ctrl+Z"), set())
    page.close()


LOGS = {"a.safetensors", "pictures, results.json, results.md and figures: out"}


def written(webui: WithPage) -> None:
    """A training and an evaluation that are over."""
    home = webui.data / "models" / "ipadapter"
    row = {"step": 4, "loss": 0.5, "lr": 1e-4, "pictures_per_second": 8.0, "time": 1.0, "validation": 0.4}
    rows = "".join(f"{json.dumps({**row, 'step': step})}\n" for step in range(1, 5))
    table = Results(
        (Row.of("base-model", 0.0, {"clip_i": Values([0.4, 0.5]), "top_1": Values([0, 1], True)}, 2),
         Row.of("mine", 1.0, {"clip_i": Values([0.8, 0.9]), "top_1": Values([1, 1], True)}, 2)),
        {}, {"mine": "base-model"},
    )  # fmt: skip
    for name, text in {
        "training/mine/run.yaml": "{base: a, data: b, encoder: c, out: d, steps: 4}", "training/mine/log.jsonl": rows,
        "training/mine/log.txt": min(LOGS), "evaluations/both/run.yaml": "{}",
        "evaluations/both/log.txt": max(LOGS),
        "evaluations/both/results.json": json.dumps(table.as_dict()),
    }.items():  # fmt: skip
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    Image.new("RGB", (400, 200)).save(home / "evaluations" / "both" / "grid.png")


def test_the_tab_of_trainings_is_translated(browser: Any, chinese: WithPage):
    written(chinese)
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    load(page, chinese.url)
    page.evaluate("""() => [...document.querySelectorAll('#tabs > .tab-nav button')]
        .find(button => button.textContent.includes('IP-Adapter training')).click()""")
    page.wait_for_selector("#ipadapter_train_state .ipadapter-facts", timeout=30_000)
    until = PanelPage(page).until
    until(lambda: set(page.evaluate(TEXTS, "#tab_ipadapter_train")) - LOGS, {"mine", "log.txt"})
    page.locator("#ipadapter_train_parts button").nth(1).click()
    page.wait_for_selector("#ipadapter_evaluate_state .ipadapter-facts", state="attached", timeout=30_000)
    names = {"both", "log.txt", "base-model", "mine", "CLIP-I"}

    def found() -> set[str]:
        return {text for text in page.evaluate(TEXTS, "#tab_ipadapter_train") if str(chinese.data) not in text}

    until(lambda: (names <= found(), found() - LOGS - names - {"base-model 0", "top-1"}), (True, set()))
    page.close()
