"""What the panel shows of face adapters: the face that counts, and what is there of what they need."""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.controlnet.files import ControlNets
from lib_ipadapter.encoders import EncoderSource
from lib_ipadapter.errors import FaceMissing, FaceModelMissing, UnitError
from lib_ipadapter.faces import FaceAnalyser, FacePacks
from lib_ipadapter.pictures.preprocess import Preprocess
from lib_ipadapter.webui.describe import control_of, description_of
from lib_ipadapter.webui.panel import faces as panel_faces
from lib_ipadapter.webui.panel import html
from lib_ipadapter.webui.panel.values import MASKS, masks_text
from tests.core.test_face_prompts import NONE, ONE, TWO
from tests.face_models import write_pack
from tests.synthetic import adapter_tensors, write_adapter


@pytest.fixture
def analyser(tmp_path) -> FaceAnalyser:
    write_pack(tmp_path / "packs")
    return FaceAnalyser(FacePacks(lambda: [tmp_path / "packs"]))


def shown(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), int)


def saved(folder, picture: Image.Image) -> str:
    picture.save(folder / "x.png")
    return str(folder / "x.png")


def test_the_thumbnail_is_the_face_that_counts_with_all_that_were_found(tmp_path, analyser):
    path = saved(tmp_path, TWO)
    first, what, below = panel_faces.view(path, None, "leftmost", "", analyser)
    assert what == "face number 0 from the left, of 2"
    assert shown(first).shape == (224, 224, 3)
    second, what, other_below = panel_faces.view(path, None, 1, "", analyser)
    assert what == "face number 1 from the left, of 2"
    one, other = shown(first), shown(second)
    chosen = [np.abs(x - np.array([255, 120, 0])).max(-1) < 60 for x in (one, other)]
    corner = (slice(128, 224), slice(0, 96))  # the picture in the corner, 96 pixels
    assert np.argwhere(chosen[0][corner])[:, 1].mean() < 40 < 56 < np.argwhere(chosen[1][corner])[:, 1].mean()
    assert analyser.runs == 1
    assert below.count('class="ipadapter-face"') == 2
    assert 'data-face="0" aria-pressed="true"' in below
    assert 'data-face="1" aria-pressed="true"' in other_below


def test_a_single_face_has_no_corner(tmp_path, analyser):
    uri, what, below = panel_faces.view(saved(tmp_path, ONE), None, "", "", analyser)
    assert (what, below) == ("the face that counts", "")
    assert shown(uri).shape == (224, 224, 3)


def test_box_and_mask_say_where_it_is_looked_for(tmp_path, analyser):
    path = saved(tmp_path, TWO)
    whole, _, _ = panel_faces.view(path, None, "largest", "", analyser)
    half, what, _ = panel_faces.view(path, (0.5, 0.0, 1.0, 1.0), "largest", "", analyser)
    assert half != whole
    mask = Image.new("L", TWO.size, 0)
    mask.paste(255, (320, 0, 640, 640))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    _, what, _ = panel_faces.view(path, None, "largest", uri, analyser)
    assert what == "the face that counts"


def test_a_tile_says_what_is_wrong(tmp_path, analyser):
    def see(path, box, mask):
        return panel_faces.view(path, box, "largest", mask, analyser)

    tile = html.thumbnails([saved(tmp_path, NONE)], [None], [None], see)
    assert "no face was found in x.png" in tile
    with pytest.raises(FaceMissing):
        see(str(tmp_path / "x.png"), None, "")
    with pytest.raises(UnitError, match="face"):
        panel_faces.view(saved(tmp_path, ONE), None, "4", "", analyser)
    for file in (tmp_path / "packs" / "buffalo_l").iterdir():
        file.unlink()
    with pytest.raises(FaceModelMissing):
        see(str(tmp_path / "x.png"), None, "")


def test_what_is_known_of_a_file_stays_beside_an_error():
    """Of an encoder that cannot be told, the kind and the base of the file are no less known."""
    told = {"title": "FaceID-PlusV2", "base": "SD1.5", "encoder": "", "encoder_found": False, "error": "which of two"}
    shown = html.file_info({**told, "fits": True, "checkpoint": "dream", "face_models": "buffalo_l", "face_error": ""})
    assert [word in shown for word in ("FaceID-PlusV2", "SD1.5: fits dream", "buffalo_l found", "which of two")] == [
        True
    ] * 4
    assert "image encoder missing" not in shown
    unread = html.file_info({"title": "x", "base": "", "encoder": "", "encoder_found": False, "error": "no model"})
    assert unread == html.failure("no model")


def test_a_picture_without_its_face_is_shown_all_the_same(tmp_path, analyser):
    """With the error below; where face models are missing, the model's line says so."""
    path = saved(tmp_path, NONE)
    seen = panel_faces.view_or_picture(path, None, "largest", "", analyser)
    assert "no face was found in x.png" in seen.below
    assert np.abs(shown(seen.source).mean((0, 1)) - np.asarray(NONE, int).mean((0, 1))).max() < 3
    assert "<img" in html.thumbnails([path], [None], [None], lambda *_: seen)
    for file in (tmp_path / "packs" / "buffalo_l").iterdir():
        file.unlink()
    alone = panel_faces.view_or_picture(path, None, "largest", "", analyser)
    assert (alone.source, alone.below) == (seen.source, "")


def described(tmp_path, analyser, variant="faceid-plus", name="plusv2", **more):
    sizes = {"context": 64, "widths": (32,), "feature_width": 48, "lora": 2} | more
    path = write_adapter(tmp_path / f"{name}.safetensors", adapter_tensors(variant, **sizes))
    return description_of(Adapter.load(path).spec, "", EncoderSource([tmp_path / "encoders"]), analyser)


def test_what_a_face_adapter_needs_and_which_fields_it_has(tmp_path, analyser):
    found = described(tmp_path, analyser)
    assert found["fields"] == ["face", "shortcut", "lora", "kind"]
    assert (found["face_models"], found["face_error"]) == ("buffalo_l", "")
    assert "face models buffalo_l: found" in found["text"]
    assert "w600k_r50.onnx is not buffalo_l's published file, by its hash" in found["text"]
    assert described(tmp_path, analyser, "faceid", "a")["fields"] == ["face", "lora"]
    assert described(tmp_path, analyser, "faceid", "a", lora=0, tokens=16)["fields"] == ["face"]
    plain = described(tmp_path, analyser, "base", "b", lora=0)
    assert (plain["fields"], plain["face_models"]) == ([], "")


def test_the_chips_say_what_is_missing(tmp_path, analyser):
    found = html.file_info(described(tmp_path, analyser, "faceid", "a"))
    assert '<span class="ipadapter-chip found">face models buffalo_l found</span>' in found
    assert "image encoder" not in found
    assert described(tmp_path, analyser, "faceid", "a")["download"] == ""
    for file in (tmp_path / "packs" / "buffalo_l").iterdir():
        file.unlink()
    found = html.file_info(described(tmp_path, analyser, "faceid", "a"))
    page = "https://huggingface.co/public-data/insightface/blob/main/models/buffalo_l/w600k_r50.onnx"
    assert f'<a class="ipadapter-chip missing" href="{page}" target="_blank"' in found
    assert "face models buffalo_l missing ↗</a>" in found
    assert "(of the pack buffalo_l) was not found. Put buffalo_l.zip" in found
    assert described(tmp_path, analyser, "faceid", "a")["download"] == "buffalo_l"


def test_instant_id_s_pose_and_controlnet(tmp_path, analyser):
    """The keypoints of the reference or of the pose picture, and whether the ControlNet is there."""
    path, other = saved(tmp_path, TWO), str(tmp_path / "other.png")
    ONE.save(other)
    given = {"control_model": "auto", "pose_weight": 0.8, "pose_from": "reference", "pose_face": "largest",
             "focus": "", "box": "", "face": "leftmost", MASKS: ""}  # fmt: skip

    def seen(images, poses, **fields) -> np.ndarray:
        markup = panel_faces.pose({**given, **fields}, images, poses, analyser)
        return shown(markup.partition('src="')[2].partition('"')[0])

    left, right, everyone = (seen([path], [], **f) for f in ({}, {"face": "rightmost"}, {"pose_face": "all"}))
    assert np.abs(left - right).max() > 100
    assert np.abs(np.maximum(left, right) - everyone).max() < 60  # of a JPEG
    assert np.abs(seen([path], [other]) - seen([other], [])).max() == 0
    half = Image.new("L", TWO.size)  # the image's own mask leaves the right face
    half.paste(255, (TWO.width // 2, 0, *TWO.size))
    masked = seen([path, other], [], **{MASKS: masks_text([html.data_uri(half, TWO.width), ""])})
    assert np.abs(masked - seen([path, other], [], focus=html.data_uri(half, TWO.width))).max() == 0
    assert np.abs(masked - left).max() > 100
    assert "The adapter alone" in panel_faces.pose({**given, "control_model": "none"}, [path], [], analyser)
    assert "picture that is redrawn" in panel_faces.pose({**given, "pose_from": "redrawn"}, [path], [], analyser)
    NONE.save(other)
    assert "no face was found" in panel_faces.pose(given, [path], [other], analyser)
    assert panel_faces.pose(given, [], [], analyser) == ""

    flat = adapter_tensors("unnorm", 2048, (64, 64), tokens=16)
    spec = Adapter.load(write_adapter(tmp_path / "id.safetensors", flat, ip_adapter_variant="instantid")).spec
    found = control_of(spec, ControlNets(lambda: [tmp_path]))
    assert "InstantID's ControlNet is missing" in found["control_error"]
    assert "ControlNet missing" in html.file_info({"title": "x", **found})
    assert control_of(Adapter.load(write_adapter(tmp_path / "b.safetensors", adapter_tensors())).spec, None) == {
        "control": "", "control_error": ""
    }  # fmt: skip


def test_masks_are_not_kept_as_they_were_given(tmp_path, analyser):
    """A mask may take megabytes, and hundreds of thumbnails are kept."""
    path, uri = saved(tmp_path, ONE), html.data_uri(Image.new("L", ONE.size, 255), 512)
    held = sys.getrefcount(uri)
    seen = panel_faces.view(path, None, "largest", uri, analyser)
    square = html.square(path, 224, Preprocess(), None, uri)
    pad = html.pad("mask", uri)
    assert sys.getrefcount(uri) == held
    half = Image.new("L", ONE.size, 255)
    half.paste(0, (0, 0, ONE.width // 2, ONE.height))
    other = html.data_uri(half, 512)
    assert html.square(path, 224, Preprocess(), None, other) != square
    assert html.pad("mask", other) != pad
    assert panel_faces.view(path, None, "largest", uri, analyser) is seen
