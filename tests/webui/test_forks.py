"""Forge and reForge, where a checkout of them is: the WebUI's own tests, and what only they have."""

from __future__ import annotations

import pytest

from .forks import Fork, full_title
from .harness import WebUI, b64, decode, picture
from .test_generation import (
    one,
    same,
    test_a_unit_changes_the_picture_and_off_is_the_base_hash_for_hash,
    test_every_variant_acts,
)
from .test_seeing import Job, shown
from .test_seeing import test_a_sheet_beside_the_picture_which_stays_hash_for_hash as a_sheet_beside_the_picture

__all__ = [
    "shown",
    "test_a_unit_changes_the_picture_and_off_is_the_base_hash_for_hash",
    "test_every_variant_acts",
]


@pytest.fixture
def on_sd1(fork: Fork) -> WebUI:
    """The host of this run."""
    return fork


def test_cfg_1_and_a_prompt_of_two_parts(on_sd1: WebUI, unit: dict) -> None:
    for payload in ({"cfg_scale": 1}, {"prompt": "a red house AND a blue boat"}):
        assert on_sd1.images(unit, **payload) != on_sd1.images(steps=2, **payload)


def test_one_reference_for_each_picture_of_a_batch(on_sd1: WebUI, reference: str) -> None:
    """Each is what a job with its own reference draws, and not the other's."""
    fields = {"model": "sd1-plus", "distribute": "one per picture"}
    other = b64(picture(3))
    both = on_sd1.draw({**fields, "images": [reference, other]}, batch_size=2).json["images"][-2:]
    alone = [
        one(on_sd1, {"model": "sd1-plus", "images": [image]}, seed=1 + i) for i, image in enumerate((reference, other))
    ]
    for a, b in zip(both, alone, strict=True):
        same(on_sd1, a, b)
    swapped = one(on_sd1, {"model": "sd1-plus", "images": [other]})
    assert (decode(swapped) - decode(both[0])).abs().mean() > 0.5


def test_a_request_that_cannot_be_used_is_refused(on_sd1: WebUI, unit: dict) -> None:
    for change, words in (({"model": "none such"}, "no adapter named"), ({"weight": 9}, "from -1 to 5")):
        reply = on_sd1.draw({**unit, **change})
        assert reply.status == 422
        assert words in reply.json["detail"]["message"]
    assert on_sd1.draw({**unit, "model": "sdxl-base"}).status == 422


def test_its_own_ip_adapter_is_still_there(on_sd1: WebUI) -> None:
    """Forge ships a folder of our package's name, which ours hid once."""
    assert "No module named 'lib_ipadapter" not in on_sd1.log
    assert "Error loading script: forge_ipadapter.py" not in on_sd1.log


def test_a_region_hires_fix_and_inpainting(on_sd1: WebUI, unit: dict) -> None:
    left = picture(0, (64, 64)).convert("L").point(lambda _: 0)
    left.paste(255, (0, 0, 32, 64))
    base, masked = on_sd1.images(), on_sd1.images({**unit, "mask": b64(left)})
    assert masked not in (base, on_sd1.images(unit))
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7, "steps": 1,
             "hr_additional_modules": ["Use same choices"]}  # fmt: skip
    assert on_sd1.images({**unit, "passes": "hires"}, **hires) != on_sd1.images(**hires)
    inpaint = {
        "mode": "img2img",
        "init_images": [b64(picture(2, (64, 64)))],
        "mask": b64(left),
        "denoising_strength": 0.8,
    }
    # The forks' encoder of pictures draws from torch's own random numbers, so no inpainted picture comes twice.
    base, again, drawn = (
        decode(one(on_sd1, *units, **inpaint)) for units in ((), (), ({**unit, "region": "inpaint"},))
    )
    assert (drawn - base).abs().mean() > 5 * (again - base).abs().mean() + 1


SAG = {"selfattentionguidance integrated": {"args": [True, 0.5, 2.0]}}


def test_a_sheet_beside_the_picture_which_stays_hash_for_hash(fork: Fork, unit: dict, shown: dict) -> None:
    """In as many steps as a sheet has parts."""
    few = fork.defaults
    fork.defaults = {**few, "steps": 3}
    try:
        a_sheet_beside_the_picture(fork, unit, shown)
    finally:
        fork.defaults = few


def test_heat_maps_of_a_prompt_in_two_parts(on_sd1: WebUI, shown: dict) -> None:
    """In the first step two equal parts are at the same place in every layer as one, so their mean is its map."""
    one = {"steps": 1, "prompt": "a red house", "batch_size": 2, "do_not_save_grid": True}
    plain, joined = Job(on_sd1, shown, **one), Job(on_sd1, shown, **{**one, "prompt": "a red house AND a red house"})
    assert len(plain.sheets) == len(joined.sheets) == 2
    for place in range(2):
        assert joined.means(place) == pytest.approx(plain.means(place), rel=1e-3)


def test_heat_maps_leave_out_the_passes_of_guidance(fork: Fork, shown: dict) -> None:
    scripts = full_title(fork, SAG)
    size = {"steps": 1, "width": 128, "height": 128}  # reForge's divides by zero in smaller ones
    plain, guided = Job(fork, shown, **size), Job(fork, shown, **size, scripts=scripts)
    assert guided.means() == pytest.approx(plain.means(), rel=1e-3)


def test_heat_maps_leave_out_what_reference_only_records(fork: Fork, shown: dict) -> None:
    fields = {"enabled": True, "module": "reference_only", "model": "None", "image": b64(picture(4, (64, 64)))}
    job = Job(fork, shown, steps=1, scripts={"ControlNet": {"args": [{**fields, "save_detected_map": False}]}})
    assert len(job.sheets) == 1
    assert all(0 < value < 1 for name, value in job.means().items() if name in ("all", "in", "mid", "out"))
