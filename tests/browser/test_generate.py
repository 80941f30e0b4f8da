"""From the page to a picture and back: generating, errors, the model's file, sending results."""

from __future__ import annotations

from typing import Any

import pytest

from .pages import PanelPage, upload


@pytest.fixture
def small(page: Any) -> Any:
    """The page, set to pictures that a CPU draws in a second."""
    for name, value in (("steps", 2), ("width", 64), ("height", 64), ("seed", 1)):
        box = page.locator(f"#txt2img_{name} input[type=number]").first
        box.fill(str(value))
        box.blur()
    page.locator("#txt2img_prompt textarea").fill("a hill under the sun")
    return page


STATE = """() => {
    const gallery = document.getElementById('txt2img_gallery');
    const found = gallery.querySelector('.preview img, .thumbnail-item img');
    const idle = document.getElementById('txt2img_interrupt').style.display === 'none';
    return idle && found ? found.src : '';
}"""


def generate(page: Any) -> str:
    """Generates; gives the address of the picture."""
    before = page.evaluate(STATE)
    page.locator("#txt2img_generate").click()
    for _ in range(600):
        page.wait_for_timeout(200)
        address = page.evaluate(STATE)
        if address not in ("", before):
            return address
    raise AssertionError("no picture after 2 minutes")


def pixels(page: Any, address: str) -> bytes:
    """The picture's pixels: the files differ by their infotext."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB").tobytes()


def infotext(page: Any) -> str:
    return page.locator("#html_info_txt2img").first.inner_text()


def error_of(page: Any) -> str:
    """Generates what must fail; gives what the page says in red."""
    page.locator("#txt2img_generate").click()
    box = page.locator("#html_log_txt2img .error")
    box.wait_for(timeout=60_000)
    return box.inner_text()


def test_a_picture_under_the_panel_differs_and_can_be_pasted_back(small: Any):
    plain = pixels(small, generate(small))
    assert "IP-Adapter" not in infotext(small)
    panel = PanelPage(small).open()
    panel.add(0, upload(0), upload(1))
    panel.until(panel.thumbs, 2)
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "found" in panel.info(), True)
    panel.set_number(0, "weight", 0.85)
    prompted = pixels(small, generate(small))
    assert prompted != plain
    text = infotext(small)
    assert "IP-Adapter" in text

    panel.set_number(0, "weight", 0.1)
    panel.choose(0, "fit", "stretch")
    small.locator("#txt2img_prompt textarea").fill(text)
    small.locator("#txt2img_prompt textarea").blur()
    small.locator("#txt2img_tools #paste").click()
    panel.until(lambda: (panel.number(0, "weight"), panel.choice(0, "fit")), (0.85, "crop"))
    panel.until(panel.note, "These are the images of the pasted text.")
    assert pixels(small, generate(small)) == prompted

    small.locator("#ipadapter_txt2img-visible-checkbox").uncheck()
    panel.until(panel.title, "IP-Adapter (off, 2 references)")
    assert pixels(small, generate(small)) == plain


def test_a_result_becomes_a_reference(small: Any):
    generate(small)
    panel = PanelPage(small).open()
    panel.choose_model(0, "sd1-base")  # else it is the last used one, which may be one of faces
    small.locator("#txt2img_send_to_ipadapter").click()
    panel.until(panel.thumbs, 1)
    assert panel.is_on()


def test_a_panel_that_was_only_looked_into_changes_nothing(small: Any):
    """F5."""
    plain = pixels(small, generate(small))
    PanelPage(small).open()
    assert pixels(small, generate(small)) == plain
    assert "IP-Adapter" not in infotext(small)


def test_a_unit_without_a_picture_stops_the_generation_in_red(small: Any):
    """F14: in words; those of the other fields: core/test_unit."""
    panel = PanelPage(small).open()
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "found" in panel.info(), True)
    text = error_of(small)
    assert "unit 1" in text
    assert "at least one reference image" in text


def test_what_a_file_is_and_what_it_lacks(panel: PanelPage):
    """F31: the button says the size and the source."""
    panel.choose_model(0, "sd1-plus")
    panel.until(lambda: "found" in panel.info(), True)
    assert "plus" in panel.info()
    assert not panel.unit(0, "download").is_visible()
    panel.choose_model(0, "needs-vit-h")
    panel.until(lambda: "ViT-H-14 missing" in panel.info(), True)
    panel.until(lambda: panel.unit(0, "download").is_visible(), True)
    assert panel.unit(0, "download").inner_text().strip() == (
        "Download ViT-H-14 (2.5 GB, huggingface.co/h94/IP-Adapter)"
    )
    chip = panel.unit(0, "info").locator("a.ipadapter-chip.missing")
    page = "https://huggingface.co/h94/IP-Adapter/blob/main/models/image_encoder/model.safetensors"
    assert (chip.get_attribute("href"), chip.get_attribute("target")) == (page, "_blank")
    panel.choose_model(0, "None")
    panel.until(panel.info, "")
    assert not panel.unit(0, "download").is_visible()


def test_refresh_keeps_the_choice(panel: PanelPage):
    panel.choose_model(0, "sd1-base")
    panel.unit(0, "refresh").click()
    panel.page.wait_for_timeout(1500)
    assert panel.model() == "sd1-base"
    assert "sd1-plus" in panel.models()


def test_a_painted_region_acts_where_it_is_painted(small: Any):
    panel = PanelPage(small).open()
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: "found" in panel.info(), True)
    panel.set_number(0, "weight", 1)
    everywhere = pixels(small, generate(small))

    panel.unit(0, "where").locator(".label-wrap").click()
    panel.edit_mask(0, "mask", "fill")
    assert pixels(small, generate(small)) == everywhere  # even: no mask
    panel.edit_mask(0, "mask", "left")
    painted = pixels(small, generate(small))
    assert painted != everywhere
    assert "mask" in infotext(small).partition("IP-Adapter")[2]


def test_a_sheet_of_where_it_acts_stands_in_the_gallery(small: Any):
    panel = PanelPage(small).open()
    panel.add(0, upload(0))
    panel.until(panel.thumbs, 1)
    panel.choose_model(0, "sd1-base")
    panel.unfold(0, "follow")
    panel.unit(0, "maps").locator("input").check()
    generate(small)
    sources = (
        "() => new Set([...document.querySelectorAll('#txt2img_gallery .thumbnail-item img')].map(i => i.src)).size"
    )
    panel.until(lambda: small.evaluate(sources), 2)
    small.locator("#txt2img_gallery .thumbnail-small").nth(1).click()
    wide = "() => document.querySelector('#txt2img_gallery .preview > button img, #txt2img_gallery .preview > img')"
    panel.until(lambda: small.evaluate(f"({wide})()?.naturalWidth > 1000"), True)
    # What the gallery's buttons read for it is the picture's own text.
    panel.until(lambda: "Steps: 2" in infotext(small), True)
