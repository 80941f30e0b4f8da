"""The panel with adapters that take faces: their options show, the tile is the face that counts."""

from __future__ import annotations

import io
from typing import Any

import pytest

from tests.synthetic import adapter_tensors, pulid_tensors, write_adapter
from tests.webui.networks import CONTEXT, SD1_WIDTHS
from tests.webui.with_page import WithPage

from .pages import PanelPage

pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from tests.face_models import picture, write_pack

TWO = picture((176, 208), (496, 432), radius=15)  # each covers one cell of the detector: one face
NAME = "page-faceid-plusv2"


@pytest.fixture
def with_faces(server: WithPage | None) -> None:
    if server is None:
        pytest.skip("the WebUI's folders are not known")
    write_pack(server.data / "models" / "insightface" / "models", "buffalo_l", seed=1)
    write_adapter(
        server.data / "models" / "ipadapter" / f"{NAME}.safetensors",
        adapter_tensors("faceid-plus", CONTEXT, SD1_WIDTHS, 128, inner=256, seed=7, lora=2),
    )


def upload() -> dict[str, Any]:
    buffer = io.BytesIO()
    TWO.save(buffer, "PNG")
    return {"name": "two.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def titles(panel: PanelPage) -> str:
    tiles = panel.unit(0, "thumbnails").locator(".ipadapter-open")
    return " ".join(tiles.evaluate_all("buttons => buttons.map(button => button.title)"))


def test_options_of_faces_show_with_an_adapter_that_takes_them(with_faces: None, panel: PanelPage):
    panel.unit(0, "refresh").click()
    panel.choose_model(0, "sd1-base")
    assert not panel.unit(0, "who").is_visible()
    panel.add(0, upload())
    panel.until(panel.thumbs, 1)
    plain = panel.sources()
    panel.choose_model(0, NAME)
    panel.until(lambda: panel.unit(0, "who").is_visible(), True)
    panel.until(lambda: panel.unit(0, "fit").is_visible(), False)  # a face is aligned, however its picture is fitted
    panel.until(lambda: "face models buffalo_l found" in panel.unit(0, "info").inner_text(), True)
    panel.until(lambda: "face number 0 from the left, of 2" in titles(panel), True)
    first = panel.sources()
    assert first != plain
    panel.unit(0, "who").locator(".label-wrap").click()
    box = panel.unit(0, "face").locator("textarea, input").first
    box.fill("1")
    box.blur()
    panel.until(lambda: "face number 1 from the left, of 2" in titles(panel), True)
    assert panel.sources() != first
    assert panel.unit(0, "lora").is_visible()
    buttons = panel.unit(0, "thumbnails").locator(".ipadapter-face")
    assert [one.get_attribute("aria-pressed") for one in buttons.all()] == ["false", "true"]
    buttons.nth(0).click()
    panel.until(lambda: "face number 0 from the left, of 2" in titles(panel), True)
    assert box.input_value() == "0"
    assert panel.sources() == first
    assert not panel.unit(0, "download").is_visible()
    panel.choose_model(0, "sd1-base")
    panel.until(lambda: panel.unit(0, "who").is_visible(), False)
    panel.until(lambda: box.input_value(), "largest")
    panel.until(panel.sources, plain)


def test_options_of_pulid_show_with_its_files_only(with_faces: None, server: WithPage, panel: PanelPage):
    write_adapter(server.data / "models" / "ipadapter" / "page-pulid.safetensors",
                  pulid_tensors("v1", CONTEXT, SD1_WIDTHS, pooled=768, hidden=1024))  # fmt: skip
    panel.unit(0, "refresh").click()
    panel.choose_model(0, NAME)
    panel.until(lambda: panel.unit(0, "who").is_visible(), True)
    panel.unit(0, "who").locator(".label-wrap").click()
    panel.until(lambda: panel.unit(0, "shortcut").is_visible(), True)
    names = ("pulid", "pulid_mode", "zero_tokens")
    assert not any(panel.unit(0, name).is_visible() for name in names)
    panel.choose_model(0, "page-pulid")
    for name in names:
        panel.until(lambda name=name: panel.unit(0, name).is_visible(), True)
    assert not panel.unit(0, "shortcut").is_visible()
    panel.until(lambda: "PuLID" in panel.info(), True)
    info = panel.info()
    assert "EVA02-L-14-336 missing" in info
    assert "face parsing missing" in info
    assert "parsing_bisenet.pth was not found" in info
    panel.choose_model(0, NAME)
    for name in names:
        panel.until(lambda name=name: panel.unit(0, name).is_visible(), False)


def test_missing_face_models_can_be_downloaded_and_their_terms_are_said(
    server: WithPage | None, with_faces: None, panel: PanelPage
):
    pack = server.data / "models" / "insightface" / "models" / "buffalo_l"
    pack.rename(pack.with_name("away"))
    for file in pack.with_name("away").iterdir():
        file.rename(file.with_suffix(".bin"))
    try:
        panel.unit(0, "refresh").click()
        panel.choose_model(0, NAME)
        panel.until(lambda: "face models buffalo_l missing" in panel.unit(0, "info").inner_text(), True)
        button = panel.unit(0, "download")
        panel.until(button.is_visible, True)
        assert button.inner_text().strip() == (
            "Download buffalo_l (191 MB, huggingface.co/public-data/insightface; research, non-commercial use only)"
        )
        button.click()
        said = "the connection to huggingface.co failed (the proxy of this computer cannot be used)"
        panel.until(lambda: said in panel.info(), True)
        panel.until(button.is_visible, True)  # to try again
    finally:
        for file in pack.with_name("away").iterdir():
            file.rename(file.with_suffix(".onnx"))
        pack.with_name("away").rename(pack)


def test_instant_id_s_pose_is_shown_before_it_is_drawn(server: WithPage | None, with_faces: None, panel: PanelPage):
    """The keypoints of the reference, of a pose picture, and what is missing of the ControlNet."""
    models = server.data / "models"
    write_pack(models / "insightface" / "models", "antelopev2", seed=1)
    flat = adapter_tensors("unnorm", CONTEXT, SD1_WIDTHS, tokens=16, seed=7)
    path = write_adapter(models / "ipadapter" / "page-instantid.safetensors", flat, ip_adapter_variant="instantid")
    try:
        panel.unit(0, "refresh").click()
        panel.choose_model(0, "page-instantid")
        panel.until(lambda: "ControlNet missing" in panel.unit(0, "info").inner_text(), True)
        panel.until(lambda: panel.unit(0, "who").is_visible(), True)
        panel.unit(0, "who").locator(".label-wrap").click()
        panel.add(0, upload())
        keypoints = panel.unit(0, "keypoints").locator("img.ipadapter-keypoints")
        panel.until(keypoints.count, 1)
        first = keypoints.get_attribute("src")
        box = panel.unit(0, "face").locator("textarea, input").first
        box.fill("1")
        box.blur()
        panel.until(lambda: keypoints.get_attribute("src") != first, True)
        control = panel.unit(0, "control_model").locator("textarea, input").first
        control.fill("none")
        control.blur()
        panel.until(lambda: "The adapter alone" in panel.unit(0, "keypoints").inner_text(), True)
        panel.choose_model(0, "sd1-base")
        panel.until(lambda: panel.unit(0, "pose_weight").is_visible(), False)
    finally:
        path.unlink()
