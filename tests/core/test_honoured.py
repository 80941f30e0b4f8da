"""``generate`` and ``embed`` use a field of a unit or refuse it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_ipadapter.attention.region import Region
from lib_ipadapter.errors import ImageError, UnitError, UnsupportedAdapter
from lib_ipadapter.evaluation.methods import adapter_method
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.resolve import ResolvedUnit, resolve
from lib_ipadapter.standalone.honoured import EMBED, GENERATE, check_control, check_embed, check_generate, placed
from lib_ipadapter.standalone.store import PathStore
from lib_ipadapter.unit import FIELDS, Unit
from tests.synthetic import adapter_tensors, write_adapter

OTHER: dict[str, Any] = {
    "weight": 0.5, "start": 0.1, "end": 0.9, "combine": "average", "distribute": "one per picture", "noise": 0.3,
    "negative": [Image.new("RGB", (4, 4))], "weight_type": "ease in", "composition": 0.5, "layers": "0:1",
    "curve": "0:0, 1:1", "interpolation": "step", "passes": "hires", "hires_factor": 0.5, "scaling": "K+V",
    "maps": True, "mask": Image.new("L", (4, 4), 255), "region": "inpaint", "feather": 3, "in_detailer": "no",
    "in_upscale": False, "in_loopback": False, "shortcut": 0.5, "lora": 0.5, "region_face": "leftmost",
    "grow": 2.0, "pulid": "style", "pulid_mode": "off", "zero_tokens": 3,
    "pose": [Image.new("RGB", (4, 4))], "pose_from": "redrawn", "pose_face": "all", "pose_weight": 0.4,
    "pose_start": 0.1, "pose_end": 0.9, "control_model": "none",
}  # fmt: skip


def unit(**fields: Any) -> Unit:
    return Unit.parse({"model": "a", "images": [Image.new("RGB", (4, 4))], **fields})


def half(colour: int = 255, size: tuple[int, int] = (8, 4)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(colour, (0, 0, size[0] // 2, size[1]))
    return mask


def test_every_field_is_used_or_refused_by_embed() -> None:
    names = {field.name for field in FIELDS} - set(EMBED) - {"invert"}  # which takes a mask or inpaint
    assert names == set(OTHER)
    check_embed(unit(fit="pad", box="0, 0, 1, 0.5", sharpen=0.5, face="leftmost", kind="faceid-plus"))
    for name in names:
        with pytest.raises(UnitError, match=f"^{name}: .*when the embeds are used"):
            check_embed(unit(**{name: OTHER[name]}))


def test_what_generate_cannot_use_is_refused() -> None:
    refused = {"maps", "hires_factor", "in_detailer", "in_upscale", "in_loopback", "region_face", "grow"}
    refused |= {name for name in OTHER if name.startswith("pose")}
    assert set(GENERATE) == refused, "what is not refused must act"
    for name in [*GENERATE, "passes"]:
        with pytest.raises(UnitError, match=f"^{name}: got .*expected"):
            check_generate(unit(**{name: OTHER[name]}), True)
    with pytest.raises(UnitError, match=r"^region: .* without --mask"):
        check_generate(unit(region="inpaint"), False)
    check_generate(unit(region="inpaint", passes="first"), True)


def test_instant_id_without_its_controlnet_is_asked_for() -> None:
    """``generate`` runs no ControlNet, so a picture without it is one that was wanted so."""
    check_control(unit(control_model="none"), True)
    check_control(unit(), False)
    for name, posed in (("auto", True), ("mine", True), ("mine", False)):
        with pytest.raises(UnitError, match=r"^control_model: got .* expected none, for the adapter alone: InstantID"):
            check_control(unit(control_model=name), posed)


def test_evaluate_does_not_measure_it_without_its_controlnet(tmp_path: Path) -> None:
    tensors = adapter_tensors("unnorm", 64, (32,), 16)
    path = write_adapter(tmp_path / "person.safetensors", tensors, ip_adapter_variant="instantid")
    nothing: Any = None
    with pytest.raises(UnsupportedAdapter, match=r"person\.safetensors: InstantID .*--webui URL"):
        adapter_method("person", path, nothing, nothing)


@dataclass(frozen=True)
class Prompt:
    region: Region | None = None


def regions(inpaint: Image.Image | None, size: tuple[int, int], *units: Unit) -> list[Region | None]:
    prompts: Any = [Prompt() for _ in units]
    return [prompt.region for prompt in placed(prompts, units, size, inpaint)]


def test_region_inpaint_is_the_mask_of_the_command() -> None:
    inpaint, everywhere, inverted = regions(
        half(), (8, 4), unit(region="inpaint"), unit(), unit(region="inpaint", invert=True)
    )
    assert everywhere is None
    assert inpaint is not None
    assert inverted is not None
    assert inpaint.mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4
    assert torch.equal(inverted.mask, 1 - inpaint.mask)


def test_a_feather_is_in_pixels_of_the_picture() -> None:
    """The same on a mask of half the size, and even in both directions on one of another proportion."""
    (fine,) = regions(None, (64, 64), unit(mask=half(size=(64, 64)), feather=4))
    (coarse,) = regions(None, (64, 64), unit(mask=half(size=(32, 64)), feather=4))
    assert fine is not None
    assert coarse is not None
    assert fine.mask.shape == coarse.mask.shape == (64, 64)
    assert (fine.mask - coarse.mask).abs().max() < 0.03


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"mask": Image.new("L", (4, 4), 0)}, "unit 2: mask: .*black all over"),
     ({"mask": Image.new("L", (4, 4), 255), "invert": True}, "white all over"),
     ({"region": "inpaint"}, "region: .*black all over")],
)  # fmt: skip
def test_an_empty_region_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnitError, match=words):
        regions(Image.new("L", (4, 4), 0), (8, 8), unit(), unit(**fields))


def resolved(given: Unit) -> ResolvedUnit:
    return resolve(given, PathStore(), Pictures())


def test_a_mask_in_alpha_and_references_with_nothing_to_see() -> None:
    shape = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    shape.paste((0, 0, 0, 255), (0, 0, 4, 4))
    (region,) = regions(None, (8, 4), unit(mask=shape))
    assert region is not None
    assert region.mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4
    with pytest.raises(ImageError, match="nothing to see"):
        resolved(unit(images=[Image.new("RGBA", (4, 4))])).references[0].image()
    with pytest.raises(UnitError, match=r"focus: .*black all over"):
        resolved(unit(focus=Image.new("L", (4, 4), 0))).reference_mask.image()
