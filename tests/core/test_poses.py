"""Whose pose a unit's ControlNet holds in a job, and where in the picture it stands."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from lib_ipadapter.adapters.variant import VariantSpec
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import WHOLE
from lib_ipadapter.controlnet.files import ControlNets
from lib_ipadapter.errors import ControlMissing, FaceMissing, UnitError, WrongBase
from lib_ipadapter.faces import FaceAnalyser, FacePacks
from lib_ipadapter.faces.keypoints import COLOURS
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pose import Keypoints, placed
from lib_ipadapter.prompts.resolve import ResolvedUnit
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui import poses, turns
from lib_ipadapter.webui.following import Place, boxes_of, whole_size
from lib_ipadapter.webui.passes import Pass
from tests.controlnets import ldm_control
from tests.core.test_controlnet import CONTEXT, unet_of
from tests.core.test_face_prompts import NONE, TWO
from tests.face_models import write_pack

WHERE = [(0.25, 0.3), (0.75, 0.65)]  # of TWO's faces, by the small detector
SPEC = VariantSpec("instantid", "InstantID", "SDXL", "raw face", 512, "antelopev2", 16, CONTEXT, (32,))
PLACE = Place(size=(640, 640))


class Sources:
    """What ``Models`` gives, with remarks kept."""

    def __init__(self, folder) -> None:
        write_pack(folder / "packs")
        self.faces = FaceAnalyser(FacePacks(lambda: [folder / "packs"]))
        self.controls = ControlNets(lambda: [folder])
        self.said: list[str] = []
        self.host = SimpleNamespace(comment=lambda p, text: self.said.append(text))
        save_file({k: v.contiguous() for k, v in ldm_control(unet_of().state_dict()).items()}, folder / "a.safetensors")


@pytest.fixture
def sources(tmp_path) -> Sources:
    return Sources(tmp_path)


def resolved(picture=TWO, pose=None, **fields) -> ResolvedUnit:
    pictures = Pictures()
    unit = Unit.parse({"model": "m", "images": [picture], **fields, **({} if pose is None else {"pose": pose})})
    reference = pictures.reference(picture, "images[0]")
    return ResolvedUnit(unit, (reference,), pose=None if pose is None else pictures.reference(pose, "pose"))


def control(sources, one, p=None, place=PLACE, spec=SPEC, passes=()):
    return poses.control_of(p or SimpleNamespace(), one.unit, [one], spec, place, sources, passes)


def centres(found) -> np.ndarray:
    return found.hints[0].faces.mean(1)


def job(**fields):
    given = {"init_images": [TWO], "width": 640, "height": 640, "image_mask": None, "resize_mode": 0}
    return SimpleNamespace(**{**given, **fields})


def test_the_reference_s_face_that_counts(sources):
    assert centres(control(sources, resolved(face="leftmost")))[0] == pytest.approx(WHERE[0], abs=0.03)
    assert centres(control(sources, resolved(face="rightmost")))[0] == pytest.approx(WHERE[1], abs=0.03)
    assert len(centres(control(sources, resolved(pose_face="all")))) == 2
    assert sources.faces.runs == 1
    assert "a.safetensors was taken for InstantID's ControlNet" in sources.said[0]


def test_a_pose_picture_and_the_reference_s_box(sources):
    found = control(sources, resolved(pose=TWO, pose_face="rightmost", face="leftmost"))
    assert centres(found)[0] == pytest.approx(WHERE[1], abs=0.03)
    half = control(sources, resolved(box="0, 0, 0.5, 0.5"))
    assert centres(half)[0] == pytest.approx((0.5, 0.6), abs=0.06)


def test_the_picture_that_is_redrawn(sources):
    found = control(sources, resolved(NONE, pose_from="redrawn", pose_face="1"), job())
    assert centres(found)[0] == pytest.approx(WHERE[1], abs=0.03)
    wide = control(sources, resolved(NONE, pose_from="redrawn", pose_face="1"), job(width=1280, resize_mode=2))
    assert centres(wide)[0] == pytest.approx((0.25 + WHERE[1][0] / 2, WHERE[1][1]), abs=0.03)
    with pytest.raises(UnitError, match="pose_from"):
        control(sources, resolved(NONE, pose_from="redrawn"), job(init_images=[]))
    with pytest.raises(FaceMissing):
        control(sources, resolved(NONE, pose_from="redrawn"), job(init_images=[NONE]))


def test_a_detail_takes_the_face_that_is_redrawn(sources):
    mask = Image.new("L", TWO.size)
    mask.paste(255, (400, 300, 600, 560))
    p = job(image_mask=mask, inpaint_full_res=True)
    place = replace(PLACE, detailer=True, around=SimpleNamespace())
    only = resolved(NONE, in_detailer="only")
    assert centres(control(sources, only, p, place))[0] == pytest.approx(WHERE[1], abs=0.03)
    part = replace(place, boxes=((0.5, 0.0, 1.0, 0.5),))
    assert centres(control(sources, only, p, part))[0] == pytest.approx(
        (0.5 + WHERE[1][0] / 2, WHERE[1][1] / 2), abs=0.03
    )
    mask.paste(0, (0, 0, *TWO.size))
    mask.paste(255, (0, 500, 100, 600))
    assert control(sources, only, p, place) is None
    assert "no face was found in a detail" in sources.said[-1]


def test_one_per_detail_takes_the_face_that_is_redrawn_too(sources):
    """Its reference's pose would lie anywhere in the whole picture."""
    mask = Image.new("L", TWO.size)
    mask.paste(255, (400, 300, 600, 560))
    p = job(image_mask=mask, inpaint_full_res=True)
    place = replace(PLACE, detailer=True, around=SimpleNamespace())
    own = turns.of_detail(resolved(NONE, distribute="one per detail").unit, 0, None)
    found = control(sources, replace(resolved(NONE), unit=own), p, place)
    assert centres(found)[0] == pytest.approx(WHERE[1], abs=0.03)


def dots(drawn: np.ndarray) -> np.ndarray:
    """The centres [2, 2] of a single face's eyes in its keypoint picture."""
    return np.array([np.argwhere((drawn == colour).all(-1)).mean(0)[::-1] for colour in COLOURS[:2]])


@pytest.mark.parametrize(
    ("resize", "upscale", "cut"), [((512, 768), (768, 768), (32, 0)), ((768, 512), (768, 768), (0, 32))]
)
def test_a_hires_pass_of_another_shape_does_not_distort_the_face(sources, resize, upscale, cut):
    """The WebUI cuts the first pass's picture to the shape of the second."""
    turned = np.array([[200, 200], [300, 300], [210, 290], [150, 330], [240, 390]])  # eyes on a diagonal
    p = SimpleNamespace(
        width=512, height=512, enable_hr=True, is_hr_pass=False, hr_resize_x=resize[0], hr_resize_y=resize[1],
        hr_upscale_to_x=upscale[0], hr_upscale_to_y=upscale[1], truncate_x=cut[0], truncate_y=cut[1],
    )  # fmt: skip
    hint = Keypoints(placed(turned[None], (512, 512), whole_size(p)))
    for hires, size in ((False, (512, 512)), (True, resize)):
        p.is_hr_pass = hires
        box = boxes_of(p, (WHOLE,))[0]
        left, right = dots(hint.at((size[1], size[0]), box))
        across, down = right - left
        assert across == pytest.approx(down, rel=0.03), (hires, size)


def test_the_adapter_alone(sources):
    for fields in ({"pose_weight": 0}, {"control_model": "None"}, {"weight": 0}):
        assert control(sources, resolved(NONE, **fields)) is None
    (sources.controls.folders()[0] / "a.safetensors").unlink()
    with pytest.raises(ControlMissing):
        control(sources, resolved())


def test_what_does_not_go_together(sources):
    other = replace(SPEC, variant="faceid")
    with pytest.raises(UnitError, match=r"pose: .* not InstantID's"):
        control(sources, resolved(pose=TWO), spec=other)
    with pytest.raises(UnitError, match=r"control_model: .* not InstantID's"):
        control(sources, resolved(control_model="a"), spec=other)
    assert control(sources, resolved(), spec=other) is None
    with pytest.raises(UnitError, match="saved embeds hold none"):
        poses.pose_of(replace(resolved(), references=()), (64, 64), sources.faces)
    wide = Pass(False, cross_attention_layers(unet_of(96)))
    with pytest.raises(WrongBase, match=r"a\.safetensors was made for"):
        control(sources, resolved(), passes=[wide])
    assert control(sources, resolved(passes="hires"), passes=[wide]) is not None


def test_a_known_picture_is_not_decoded_for_its_pose(sources):
    buffer = io.BytesIO()
    TWO.save(buffer, "PNG")
    text, pictures = base64.b64encode(buffer.getvalue()).decode(), Pictures()

    def drawn(**fields):
        unit = Unit.parse({"model": "m", "images": [text], **fields})
        found = control(sources, ResolvedUnit(unit, (pictures.reference(text, "images[0]"),)))
        return centres(found)[0]

    first = drawn(face="leftmost")
    assert pictures.decoded == 1
    assert np.array_equal(drawn(face="leftmost"), first)
    assert pictures.decoded == 1
    assert not np.allclose(drawn(face="rightmost"), first)
    assert not np.allclose(drawn(face="leftmost", box="0.5, 0, 1, 1"), first)
    assert pictures.decoded == 3
