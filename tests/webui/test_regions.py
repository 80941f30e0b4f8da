"""Region masks in the real WebUI: any size, hires fix, inpainting of the masked part only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image, ImageDraw

from .harness import WebUI, b64, decode, picture, pixels

HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7,
         "hr_second_pass_steps": 2, "steps": 2}  # fmt: skip


def half(size: tuple[int, int] = (64, 64), box: tuple[float, float, float, float] = (0, 0, 0.5, 1)) -> str:
    """White in a box, given by shares of width and height."""
    mask = Image.new("L", size)
    edges = [round(share * side) - (i > 1) for i, (share, side) in enumerate(zip(box, (*size, *size), strict=True))]
    ImageDraw.Draw(mask).rectangle(edges, fill=255)
    return b64(mask)


WHITE, BLACK = half(box=(0, 0, 1, 1)), b64(Image.new("L", (64, 64)))


def close(a: str, b: str) -> None:
    difference = (decode(a) - decode(b)).abs()
    assert difference.mean() < 0.1
    assert difference.max() <= 3


def raw(webui: WebUI, *units: Any, **payload: Any) -> str:
    reply = webui.draw(*units, **payload)
    assert reply.status == 200, reply.body[:1000]
    return reply.json["images"][0]


# 9 x 25 and 13 x 7 latents, whose halves are rounded up on each level
@pytest.mark.parametrize("size", [(64, 64), (72, 200), (104, 56)], ids=str)
def test_white_is_no_mask_and_black_is_refused(on_sd1: WebUI, unit, size):
    more = {"width": size[0], "height": size[1], "steps": 1}
    whole, base = raw(on_sd1, unit, **more), on_sd1.images(**more)
    assert on_sd1.images({**unit, "mask": WHITE}, **more) == [pixels(whole)]
    assert on_sd1.draw({**unit, "mask": BLACK}, **more).status == 422
    left, right = {**unit, "mask": half()}, {**unit, "mask": half(), "invert": True}
    drawn = on_sd1.images(left, **more)
    assert drawn not in ([pixels(whole)], base)
    close(raw(on_sd1, left, right, **more), whole)


def test_sdxl(on_sdxl: WebUI, unit):
    unit = {**unit, "model": "sdxl-base"}
    drawn = on_sdxl.images({**unit, "mask": half()})
    assert drawn not in (on_sdxl.known(unit), on_sdxl.known())
    assert on_sdxl.images({**unit, "mask": WHITE}) == on_sdxl.known(unit)


@pytest.mark.parametrize("more", [{}, {"hr_resize_x": 128, "hr_resize_y": 192}], ids=["scaled", "cut to another shape"])
def test_hires_fix(on_sd1: WebUI, unit, more):
    more = {**HIRES, **more}
    whole, base = on_sd1.images(unit, **more), on_sd1.images(**more)
    assert on_sd1.images({**unit, "mask": WHITE}, **more) == whole
    assert on_sd1.draw({**unit, "mask": BLACK}, **more).status == 422
    assert on_sd1.images({**unit, "mask": half()}, **more) not in (whole, base)


def inpainting(**more: Any) -> dict[str, Any]:
    return {
        "mode": "img2img", "init_images": [b64(picture(3, (128, 128)))], "mask": half((128, 128), (0.5, 0.5, 0.75, 1)),
        "mask_blur": 0, "denoising_strength": 0.8, "inpainting_fill": 1, **more,
    }  # fmt: skip


@pytest.mark.parametrize("only_masked", [False, True])
def test_what_inpainting_redraws(on_sd1: WebUI, unit, only_masked):
    job = inpainting(inpaint_full_res=only_masked, inpaint_full_res_padding=8)
    whole, base = on_sd1.images(unit, **job), on_sd1.images(**job)
    drawn = on_sd1.images({**unit, "region": "inpaint"}, **job)
    assert drawn not in (whole, base)
    outside = on_sd1.images({**unit, "region": "inpaint", "invert": True}, **job)
    assert outside not in (whole, base, drawn)
    reply = on_sd1.draw({**unit, "region": "inpaint"})
    assert reply.status == 422
    assert "Inpaint" in reply.json["detail"]["message"]


def test_a_mask_is_cut_with_the_part_that_is_redrawn(on_sd1: WebUI, unit):
    """Only the masked part is drawn, at x and y from 56 to 136 or so: what the mask says elsewhere does not count."""
    job = inpainting(inpaint_full_res=True, inpaint_full_res_padding=8)
    whole, base = on_sd1.images(unit, **job), on_sd1.images(**job)
    # The part's left edge is at 128 · 0.5 - 8 - what makes it square.
    assert on_sd1.images({**unit, "mask": half((128, 128), (0, 0, 0.2, 1))}, **job) == base
    assert on_sd1.images({**unit, "mask": half((128, 128), (0.2, 0.3, 1, 1))}, **job) == whole
    lower = raw(on_sd1, {**unit, "mask": half((128, 128), (0, 0.75, 1, 1))}, **job)
    assert [pixels(lower)] not in (whole, base)
    # Twice as fine a mask of the same region is the same.
    close(raw(on_sd1, {**unit, "mask": half((256, 256), (0, 0.75, 1, 1))}, **job), lower)


def test_the_infotext_has_the_masks_hash(on_sd1: WebUI, unit):
    reply = on_sd1.draw({**unit, "mask": half(), "feather": 4})
    text = json.loads(reply.json["info"])["infotexts"][0]
    assert '"feather": 4.0' in text.replace('\\"', '"')
    assert '"mask": "' in text.replace('\\"', '"')
    body = {"infotext": text,
            "alwayson_scripts": {"IP-Adapter": {"args": [{"images": unit["images"], "mask": half()}]}}}  # fmt: skip
    assert on_sd1.post("/sdapi/v1/txt2img", body).json["images"] == reply.json["images"]


@pytest.mark.parametrize(("fields", "message"), [
    ({"mask": "nonsense!"}, "mask"), ({"mask": 7}, "mask: got 7"), ({"feather": 1000}, "feather"),
    ({"region": "left"}, "region"), ({"invert": True}, "invert"), ({"mask": WHITE, "region": "inpaint"}, "mask"),
])  # fmt: skip
def test_bad_values_are_refused(on_sd1: WebUI, unit, fields, message):
    reply = on_sd1.draw({**unit, **fields})
    assert reply.status == 422
    assert message in json.dumps(reply.json)
