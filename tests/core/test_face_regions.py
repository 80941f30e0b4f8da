"""Region face: around a face of the picture that is redrawn, wherever the WebUI puts that picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_ipadapter.errors import FaceMissing, UnitError
from lib_ipadapter.faces import Face, FaceAnalyser, FacePacks
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui import regions
from lib_ipadapter.webui.following import Place
from tests.core.test_face_prompts import NONE, TWO
from tests.face_models import write_pack

FACES = [(128, 144, 192, 240), (448, 368, 512, 464)]  # of TWO, by the small detector


@pytest.fixture
def analyser(tmp_path) -> FaceAnalyser:
    write_pack(tmp_path)
    return FaceAnalyser(FacePacks(lambda: [tmp_path]))


def job(picture=TWO, width=640, height=640, **more):
    fields = {"init_images": [picture], "width": width, "height": height, "image_mask": None, "resize_mode": 0}
    return SimpleNamespace(**{**fields, **more})


def unit(**fields) -> Unit:
    return Unit(region="face", **{"grow": 1.0, **fields})


def box_of(region) -> tuple[int, int, int, int]:
    rows, columns = (torch.nonzero(region.mask.amax(1 - axis) > 0.5).flatten() for axis in (0, 1))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


@pytest.mark.parametrize(("which", "index"), [("leftmost", 0), ("1", 1), ("rightmost", 1)])
def test_around_the_chosen_face(analyser, which, index):
    region = regions.of_face(job(), unit(region_face=which), Place(), analyser)
    assert region.mask.shape == (640, 640)
    assert box_of(region) == pytest.approx(FACES[index], abs=1)
    assert region.moves


def test_grown_feathered_and_inverted(analyser):
    grown = regions.of_face(job(), unit(region_face="1", grow=2.0), Place(), analyser)
    assert box_of(grown) == pytest.approx((416, 320, 544, 512), abs=1)
    soft = regions.of_face(job(), unit(region_face="1", feather=8), Place(), analyser).mask
    assert 0.3 < float(soft[416, 448]) < 0.7
    turned = regions.of_face(job(), unit(region_face="1", invert=True), Place(), analyser).mask
    assert (float(turned[416, 480]), float(turned[0, 0])) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [(0, (224, 92, 256, 116)), (1, (224, 104, 256, 152)), (2, (192, 92, 208, 116)), (3, (224, 92, 256, 116))],
)
def test_it_goes_where_the_picture_goes(analyser, mode, wanted):
    """640 x 640 brought to 320 x 160: stretched, cropped above and below, or filled up at the sides."""
    given = job(width=320, height=160, resize_mode=mode)
    region = regions.of_face(given, unit(region_face="1"), Place(), analyser)
    assert region.mask.shape == (160, 320)
    assert box_of(region) == pytest.approx(wanted, abs=1)


def test_of_an_inpainted_part_it_covers_the_whole_picture(analyser):
    """Which part is sampled, the places of the rows say."""
    given = job(width=64, height=64, image_mask=Image.new("L", TWO.size), inpaint_full_res=True, resize_mode=1)
    region = regions.of_face(given, unit(region_face="1"), Place(), analyser)
    assert region.mask.shape == (640, 640)
    assert box_of(region) == pytest.approx(FACES[1], abs=1)


@pytest.mark.parametrize("cut", [False, True])
def test_in_a_detail_of_a_part_it_is_where_the_part_is(analyser, cut):
    """ADetailer inside inpaint, only masked, is given the part; the rows' boxes are those of the whole picture."""
    more = {"image_mask": Image.new("L", TWO.size), "inpaint_full_res": True} if cut else {}
    place = Place(detailer=True, around=object(), boxes=((0.5, 0.25, 1.0, 0.75),), size=(1280, 1280))
    region = regions.of_face(job(**more), unit(region_face="1"), place, analyser)
    assert box_of(region) == pytest.approx((640 + 448, 320 + 368, 640 + 512, 320 + 464), abs=1)
    part = region.over((64, 64), place.boxes[0]) > 0.5
    rows, columns = (torch.nonzero(part.amax(1 - axis)).flatten() for axis in (0, 1))
    assert (int(columns[0]), int(columns[-1])) == pytest.approx((44.8, 51), abs=1)
    assert (int(rows[0]), int(rows[-1])) == pytest.approx((36.8, 46), abs=1)


@pytest.mark.parametrize("given", [
    job(init_images=[]), SimpleNamespace(width=64, height=64), job(init_images=[TWO, TWO]),
])  # fmt: skip
def test_without_one_picture_to_redraw_it_is_refused(analyser, given):
    with pytest.raises(UnitError, match="Region face needs one picture that is redrawn"):
        regions.of_face(given, unit(), Place(), analyser)


def test_in_the_tiles_of_an_upscaler_it_is_refused(analyser):
    with pytest.raises(UnitError, match="Region face needs one picture"):
        regions.of_face(job(), unit(), Place(upscale=True), analyser)


def test_no_face_and_no_such_face(analyser):
    with pytest.raises(FaceMissing, match="no face was found in the picture that is redrawn"):
        regions.of_face(job(NONE), unit(), Place(), analyser)
    with pytest.raises(UnitError, match="region_face: got 2, expected a number below 2"):
        regions.of_face(job(), unit(region_face="2"), Place(), analyser)


def test_a_region_that_is_nowhere_in_the_picture_is_refused(analyser):
    """It would be the base model's picture without a word."""
    cropped = job(width=640, height=64, resize_mode=1)  # both faces lie above and below
    with pytest.raises(UnitError, match=r"region_face: got '1', .*another resize mode"):
        regions.of_face(cropped, unit(region_face="1"), Place(), analyser)
    detail = Place(detailer=True, around=object(), size=(640, 64))  # the unit may be for another detail
    assert float(regions.of_face(cropped, unit(region_face="1"), detail, analyser).mask.max()) == 0
    close = SimpleNamespace(faces=lambda *_: (Face((160.0, 160, 480, 480), (), 0.9),))  # a close-up
    with pytest.raises(UnitError, match="invert: got True, expected off"):
        regions.of_face(job(), unit(grow=4.0, invert=True), Place(), close)


def test_a_mask_beside_it_is_a_contradiction():
    with pytest.raises(UnitError, match="there is a mask, but region is face"):
        Unit.parse({"model": "m", "images": ["aGk="], "region": "face", "mask": "aGk="})
    with pytest.raises(UnitError, match="region_face: got 'x', expected one of largest"):
        Unit.parse({"model": "m", "images": ["aGk="], "region": "face", "region_face": "x"})


def test_in_a_hires_pass_it_is_looked_for_in_the_first_passs_picture(analyser):
    """In fractions of the picture; where edges are cut off, of what is kept."""
    given = SimpleNamespace(
        enable_hr=True, batch_size=1, width=64, height=64, is_hr_pass=False, truncate_x=0, truncate_y=0,
        image_mask=None, hr_upscale_to_x=128, hr_upscale_to_y=128,
    )  # fmt: skip
    hires = unit(region_face="1", passes="hires")
    assert regions.awaits_hires(given, hires)
    assert not regions.awaits_hires(given, unit())
    assert not regions.awaits_hires(SimpleNamespace(**{**vars(given), "batch_size": 2}), hires)
    assert not regions.awaits_hires(job(), hires)
    mask = regions.face_in_hires(given, TWO, hires, analyser)
    assert float(mask[41, 48]) == 1
    assert float(mask[30, 30]) == 0
    left = (mask.amax(0) > 0.5).nonzero().flatten()
    assert (int(left[0]), int(left[-1])) == pytest.approx((45, 50), abs=1)
    cut = SimpleNamespace(**{**vars(given), "truncate_x": 8})  # of 16 latents across, 4 on each side
    moved = (regions.face_in_hires(cut, TWO, hires, analyser).amax(0) > 0.5).nonzero().flatten()
    assert int(moved[0]) > int(left[0])
