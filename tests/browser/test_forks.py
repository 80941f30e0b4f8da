"""The panel on the pages of Forge (gradio 4) and reForge: from a picture to a picture, and an error to the eye."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.webui.forks import FOLDERS, Fork, absent
from tests.webui.harness import checkpoint
from tests.webui.with_page import WithPage

from .pages import PanelPage, upload
from .test_charts import fine, test_points_are_dragged_added_and_taken_out
from .test_generate import (
    generate,
    pixels,
    small,
    test_a_picture_under_the_panel_differs_and_can_be_pasted_back,
    test_a_result_becomes_a_reference,
)
from .test_localization import written
from .test_looks import box, drag, numbers
from .test_panel import test_a_preset_is_saved_chosen_and_deleted
from .test_train import pictures as captioned
from .test_train import said, shot

__all__ = [
    "fine",
    "small",
    "test_a_picture_under_the_panel_differs_and_can_be_pasted_back",
    "test_a_preset_is_saved_chosen_and_deleted",
    "test_a_result_becomes_a_reference",
    "test_points_are_dragged_added_and_taken_out",
]


class WithSmallCheckpoint(WithPage, Fork):
    """With a second checkpoint, of other widths."""

    def _prepare(self) -> None:
        super()._prepare()
        (self.data / "models" / "Stable-diffusion" / "tiny.safetensors").symlink_to(checkpoint("sdxl"))


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def fork(request: pytest.FixtureRequest) -> Iterator[Fork]:
    """A running fork with its page."""
    if reason := absent(request.param):
        pytest.skip(reason)
    with WithSmallCheckpoint(request.param, extra=()) as running:
        yield running


@pytest.fixture
def url(fork: Fork) -> str:
    """The address of the fork."""
    return fork.url


@pytest.fixture
def page(browser: Any, fork: Fork) -> Iterator[Any]:
    """The fork's page, fully loaded. The test fails when a script of the page failed."""
    context = browser.new_context(viewport={"width": 1400, "height": 1500})
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(fork.url)
    page.wait_for_selector("#ipadapter_txt2img_names [data-names]", state="attached", timeout=120_000)
    yield page
    context.close()
    assert [text for text in errors if "ipadapter" in text] == []


def opened(page: Any) -> PanelPage:
    page.locator("#ipadapter_txt2img .label-wrap > span").first.click()
    page.locator("#ipadapter_txt2img_units").wait_for(state="visible")
    return PanelPage(page)


def test_from_a_picture_to_a_picture(small: Any) -> None:
    plain = pixels(small, generate(small))
    panel = opened(small)
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "fits" in panel.info() and "found" in panel.info(), True)
    whole = panel.sources()
    prompted = pixels(small, generate(small))
    assert prompted != plain
    drag(panel, 0, (0.1, 0.1), (0.5, 0.9), "Apply")
    panel.until(lambda: panel.sources() != whole, True)
    assert len(numbers(box(panel))[0]) == 4
    panel.unfold(0, "where")
    panel.edit_mask(0, "mask", "left")
    panel.until(lambda: panel.unit(0, "mask_pad").locator("img").count(), 1)
    assert pixels(small, generate(small)) not in (plain, prompted)
    panel.unit(0, "thumbnails").locator(".ipadapter-remove").click()
    panel.until(panel.thumbs, 0)


def test_a_checkpoint_that_is_chosen_is_what_adapters_have_to_fit(page: Any, fork: Fork) -> None:
    """Before a job loads it, on Forge too."""
    if fork.host != "forge":
        pytest.skip("the others load a checkpoint when it is chosen, as the WebUI does")
    panel = opened(page)
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "fits sd1" in panel.info(), True)
    page.locator(".model_selection input").first.click()
    page.locator('ul.options li[aria-label^="tiny"]').first.click()
    panel.until(lambda: "not for tiny" in panel.info(), True)
    page.locator(".model_selection input").first.click()
    page.locator('ul.options li[aria-label^="sd1"]').first.click()
    panel.until(lambda: "fits sd1" in panel.info(), True)


def test_below_a_mask_are_pictures_that_are_there(page: Any) -> None:
    """Forge's canvases have empty ones. Nothing of the drop zone beside it is cut off."""
    page.locator("#tabs > .tab-nav button", has_text="img2img").first.click()
    page.locator("#ipadapter_img2img .label-wrap > span").first.click()
    panel = PanelPage(page, "img2img")
    panel.unfold(0, "look")
    zone = panel.unit(0, "negative")
    zone.locator(".center").wait_for(state="visible")
    inner, outer = (part.bounding_box() for part in (zone.locator(".center"), zone))
    assert inner["y"] + inner["height"] <= outer["y"] + outer["height"] + 1
    panel.unfold(0, "where")
    for pictures, offered in ((0, []), (1, ["Nothing", "img2img image"])):
        if pictures:
            page.locator("#img2img_image input[type=file]").first.set_input_files([upload(3)])
            page.wait_for_function("document.querySelector('#img2img_image img')?.naturalWidth > 0")
        panel.unit(0, "mask_pad").locator(".ipadapter-paint").click()
        page.wait_for_selector("dialog.ipadapter-mask[open]")
        shown = page.locator('dialog.ipadapter-mask button[data-group="backdrop"]').all_inner_texts()
        assert shown == offered
        page.keyboard.press("Escape")


def test_the_tab_of_trainings(page: Any, fork: Fork) -> None:
    """Lists, a first look, runs that are over, and errors, on gradio 4 as well."""
    written(fork)
    page.locator("#tabs .tab-nav button", has_text="IP-Adapter training").first.click()
    page.wait_for_selector("#ipadapter_train_state .ipadapter-losses")
    text = page.locator("#ipadapter_train_text textarea").first
    assert "sd1.safetensors" in text.input_value()
    assert page.locator("#ipadapter_train_state .ipadapter-facts").first.inner_text().startswith("Step\n4 / 4")
    page.locator("#ipadapter_train_data textarea, #ipadapter_train_data input").first.fill(str(captioned(fork)))
    page.click("#ipadapter_train_look")
    page.wait_for_selector(".ipadapter-look meter")
    page.click("#ipadapter_train_start")
    panel = PanelPage(page)
    panel.until(lambda: "type a name first" in said(page), True)
    if fork.host == "forge":  # the others bring ldm along
        page.locator("#ipadapter_train_name textarea, #ipadapter_train_name input").first.fill("other")
        page.click("#ipadapter_train_start")
        panel.until(lambda: "pip install --no-deps stable-diffusion-sdkit" in said(page), True)
    page.locator("#ipadapter_train_parts button", has_text="Evaluate").first.click()
    page.wait_for_selector("#ipadapter_evaluate_state .ipadapter-table")
    shot(page, f"{fork.host}-evaluate")
    panel.until(lambda: "put one with both towers" in said(page, "evaluate"), True)
    page.locator("#ipadapter_evaluate_adapters input").first.click()
    page.locator("#ipadapter_evaluate_adapters ul.options li").filter(has_text="sd1-plus").first.click()
    text = page.locator("#ipadapter_evaluate_text textarea").first
    panel.until(lambda: "sd1-plus" in text.input_value(), True)
    page.locator("#ipadapter_evaluate_name textarea, #ipadapter_evaluate_name input").first.fill("mine")
    page.click("#ipadapter_evaluate_start")
    panel.until(lambda: "type the path of a folder with pictures" in said(page, "evaluate"), True)


def test_an_error_reaches_the_eye(small: Any) -> None:
    panel = opened(small)
    panel.choose_model(0, "sd1-base")
    small.locator("#txt2img_generate").click()
    said = small.locator("#html_log_txt2img .error")
    said.wait_for(timeout=60_000)
    assert "at least one reference image" in said.inner_text()
