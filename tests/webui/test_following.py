"""Units in jobs inside jobs (as ADetailer's), in upscaling scripts, in loopback, and on Tiled Diffusion's tiles."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from .harness import WebUI, b64, decode, picture, pixels
from .test_regions import WHITE, close, half, raw

OURS = "dynamic_prompting, ip_adapter"
DEFAULT = "dynamic_prompting,dynamic_thresholding,lora_block_weight,negpip,soft_inpainting,wildcard_recursive,wildcards"
BOX = (slice(16, 48), slice(32, 64))  # rows, columns
SEEDED = {"Probe": {"args": ["seeded"]}}


def detailer(names: str = OURS, boxes: str = "32,16,64,48", checkpoint: str = "", over_init: bool = False) -> dict:
    return {"Detailer": {"args": [names, boxes, checkpoint, over_init]}}


def over_picture(side: int, scripts: dict | None = None, **more: Any) -> dict[str, Any]:
    """A job in img2img."""
    return {
        "mode": "img2img", "init_images": [b64(picture(3, (side, side)))], "denoising_strength": 0.7,
        "scripts": {**SEEDED, **(scripts or {})}, **more,
    }  # fmt: skip


def outside(image: str) -> torch.Tensor:
    pixels = decode(image)
    pixels[BOX] = 0
    return pixels


@pytest.fixture
def base(on_sd1: WebUI) -> Any:
    """A plain picture, which is the same afterwards."""
    before = on_sd1.known()
    yield before
    assert on_sd1.images() == before


# a detailer


def test_a_detail_is_prompted_where_the_detailer_lists_the_script(on_sd1: WebUI, unit, base):
    plain = raw(on_sd1, unit)
    without = raw(on_sd1, unit, scripts=detailer(DEFAULT))
    with_it = raw(on_sd1, unit, scripts=detailer())
    off = raw(on_sd1, {**unit, "in_detailer": False}, scripts=detailer())
    assert torch.equal(decode(off), decode(without))
    assert (decode(with_it)[BOX] - decode(without)[BOX]).abs().mean() > 0.5
    for drawn in (without, with_it):
        assert torch.equal(outside(drawn), outside(plain))
        assert not torch.equal(decode(drawn), decode(plain))
    assert on_sd1.known(unit) == on_sd1.images({**unit, "in_detailer": False})


def test_without_a_unit_a_detailer_that_lists_the_script_draws_the_base(on_sd1: WebUI, base):
    assert on_sd1.images(scripts=detailer()) == on_sd1.images(scripts=detailer(DEFAULT))


def test_each_picture_of_several_batches_and_its_infotext(on_sd1: WebUI, unit, base):
    several = {
        "n_iter": 2,
        "batch_size": 2,
        "do_not_save_grid": True,
        "scripts": detailer(boxes="0,0,24,24;32,16,64,48"),
    }
    reply = on_sd1.draw({**unit, "in_detailer": False}, **several)
    texts = json.loads(reply.json["info"])["infotexts"]
    assert len(texts) == 4
    assert all("IP-Adapter: " in text and "in_detailer" in text for text in texts)
    off = [pixels(image) for image in reply.json["images"]]
    on = on_sd1.images(unit, **several)
    without = on_sd1.images(unit, **{**several, "scripts": detailer(DEFAULT, boxes="0,0,24,24;32,16,64,48")})
    assert off == without
    assert not set(on) & set(without)


def test_each_unit_has_its_switch(on_sd1: WebUI, unit, base):
    other = {"model": "sd1-plus", "images": [b64(picture(5))]}
    drawn = [
        on_sd1.images({**unit, "in_detailer": a}, {**other, "in_detailer": b}, scripts=detailer())[0]
        for a in (True, False)
        for b in (True, False)
    ]
    assert len(set(drawn)) == 4


def test_details_only(on_sd1: WebUI, unit, base):
    only = {**unit, "in_detailer": "only"}
    drawn = raw(on_sd1, only, scripts=detailer())
    without = raw(on_sd1, scripts=detailer(DEFAULT))
    assert torch.equal(outside(drawn), outside(without))
    assert not torch.equal(decode(drawn), decode(without))
    said = "a unit acts in details only, and no detail was drawn with it"
    before = on_sd1.log.count(said)
    assert on_sd1.images(only) == base
    assert on_sd1.log.count(said) == before + 1


def test_one_reference_per_detail(on_sd1: WebUI, unit, base):
    """Each detail has the reference of its place; the one behind the last is drawn without."""
    two = [unit["images"][0], b64(picture(5))]
    boxes = ["0,0,24,24", "32,0,56,24", "0,32,24,56"]
    each = {**unit, "images": two, "distribute": "one per detail", "in_detailer": "only"}
    drawn = decode(raw(on_sd1, each, scripts=detailer(boxes=";".join(boxes))))
    plain = decode(raw(on_sd1, scripts=detailer(boxes=";".join(boxes))))
    swapped = decode(raw(on_sd1, {**each, "images": two[::-1]}, scripts=detailer(boxes=";".join(boxes))))
    first = decode(raw(on_sd1, {**unit, "in_detailer": "only"}, scripts=detailer(boxes=boxes[0])))
    parts = [(slice(top, bottom), slice(left, right)) for left, top, right, bottom in
             (map(int, box.split(",")) for box in boxes)]  # fmt: skip
    assert torch.equal(drawn[parts[0]], first[parts[0]])
    for part in parts[:2]:
        assert (drawn[part] - plain[part]).abs().mean() > 0.5
        assert (drawn[part] - swapped[part]).abs().mean() > 0.5
    assert "detail 3 has no reference left" in on_sd1.log


def test_a_detail_takes_its_part_of_the_mask(on_sd1: WebUI, unit, base):
    """Over the init image, so that the mask changes the details alone."""
    job = over_picture(64, scripts=detailer(over_init=True))
    whole = on_sd1.images(unit, **job)
    without = on_sd1.images(unit, **over_picture(64, scripts=detailer(DEFAULT, over_init=True)))
    assert whole != without
    around = half(box=(0.25, 0, 1, 1))  # the detail and its margin, and not the rest
    assert on_sd1.images({**unit, "mask": around}, **job) == whole
    assert on_sd1.images({**unit, "mask": around, "invert": True}, **job) == without


def test_a_detail_drawn_with_a_checkpoint_that_does_not_fit(on_sd1: WebUI, unit, base):
    other = detailer(checkpoint="sdxl.safetensors")
    assert on_sd1.images(unit, scripts=other) == on_sd1.known(unit)  # refused: the detail is left as it was
    assert "sd1-base" in on_sd1.log[on_sd1.log.rindex("IP-Adapter: ") :]
    drawn = on_sd1.images({**unit, "in_detailer": False}, scripts=other)
    assert drawn == on_sd1.images(unit, scripts=detailer(DEFAULT, checkpoint="sdxl.safetensors"))
    assert drawn != on_sd1.known(unit)


# loopback


def loopback(loops: int = 3, **more: Any) -> dict[str, Any]:
    return over_picture(64, script_name="Loopback", script_args=[loops, 0.7, "Linear", "None"], **more)


def pass_of(webui: WebUI, *units: Any, image: str, seed: int) -> str:
    """One pass, as img2img."""
    return raw(webui, *units, **over_picture(64, init_images=[image], seed=seed))


def test_loopback(on_sd1: WebUI, unit, base):
    plain = on_sd1.images(**loopback())
    on = on_sd1.draw(unit, **loopback()).json["images"][-3:]
    off = on_sd1.draw({**unit, "in_loopback": False}, **loopback()).json["images"][-3:]
    assert not set(plain) & {pixels(image) for image in on}
    start = b64(picture(3, (64, 64)))
    first = pass_of(on_sd1, unit, image=start, seed=1)
    assert torch.equal(decode(on[0]), decode(first))
    assert torch.equal(decode(off[0]), decode(first))
    image, prompted = first, first
    for number in (1, 2):
        image = pass_of(on_sd1, image=image, seed=1 + number)
        prompted = pass_of(on_sd1, unit, image=prompted, seed=1 + number)
        assert torch.equal(decode(off[number]), decode(image))
        assert torch.equal(decode(on[number]), decode(prompted))


def test_each_batch_of_loopback_has_a_first_pass(on_sd1: WebUI, unit, base):
    off = on_sd1.draw({**unit, "in_loopback": False}, **loopback(2, n_iter=2)).json["images"][-1]
    first = pass_of(on_sd1, unit, image=b64(picture(3, (64, 64))), seed=3)
    assert torch.equal(decode(off), decode(pass_of(on_sd1, image=first, seed=4)))


# upscaling scripts


def sd_upscale(**more: Any) -> dict[str, Any]:
    """112 x 112 in four tiles."""
    script = {"script_name": "SD upscale", "script_args": [None, 16, "None", 1]}
    return over_picture(112, **{**script, "steps": 2, **more})


def ultimate(**more: Any) -> dict[str, Any]:
    """128 x 128 in four tiles."""
    script = {"script_name": "Ultimate SD upscale probe", "script_args": [64]}
    return over_picture(128, **{**script, "steps": 2, **more})


@pytest.mark.parametrize("job", [sd_upscale(), sd_upscale(batch_size=3), ultimate()], ids=["one", "three", "ultimate"])
def test_upscaling(on_sd1: WebUI, unit, base, job):
    plain, on = raw(on_sd1, **job), raw(on_sd1, unit, **job)
    assert on_sd1.images({**unit, "in_upscale": False}, **job) == [pixels(plain)]
    assert on_sd1.images({**unit, "in_loopback": False}, **job) == [pixels(on)]
    difference = (decode(on) - decode(plain)).abs()
    corners = [
        difference[y, x].mean() for y in (slice(0, 40), slice(72, None)) for x in (slice(0, 40), slice(72, None))
    ]
    assert min(corners) > 0.5  # each of the four tiles


@pytest.mark.parametrize("job", [sd_upscale(), sd_upscale(batch_size=3), ultimate()], ids=["one", "three", "ultimate"])
def test_a_tile_takes_its_part_of_the_mask(on_sd1: WebUI, unit, base, job):
    whole, plain = raw(on_sd1, unit, **job), raw(on_sd1, **job)
    assert on_sd1.images({**unit, "mask": WHITE}, **job) == [pixels(whole)]
    # On the right edge of the right tiles: the left tiles are the base's.
    edge = decode(raw(on_sd1, {**unit, "mask": half((112, 112), (0.75, 0, 1, 1))}, **job))
    assert torch.equal(edge[:, :48], decode(plain)[:, :48])
    assert (edge[:, 80:] - decode(plain)[:, 80:]).abs().mean() > 0.2
    # Over the whole of the right tiles, in the lower row alone.
    lower = decode(raw(on_sd1, {**unit, "mask": half((112, 112), (0, 0.25, 1, 1))}, **job))
    assert torch.equal(lower[72:], decode(whole)[72:])
    assert not torch.equal(lower[:40], decode(whole)[:40])


def test_the_prompts_of_a_batch_of_tiles(on_sd1: WebUI, unit, base):
    """With AND there are several rows for each tile."""
    job = sd_upscale(batch_size=4, prompt="a red house AND a hill")
    edge = raw(on_sd1, {**unit, "mask": half((112, 112), (0.75, 0, 1, 1))}, **job)
    plain = decode(raw(on_sd1, **job))
    assert torch.equal(decode(edge)[:, :48], plain[:, :48])
    assert not torch.equal(decode(edge)[:, 80:], plain[:, 80:])


def test_the_feather_is_in_pixels_of_the_whole_picture(on_sd1: WebUI, unit, base):
    job = sd_upscale(script_args=[None, 16, "Lanczos", 2], init_images=[b64(picture(3, (56, 56)))])
    fine, coarse = half((112, 112), (0, 0, 0.5, 1)), half((448, 448), (0, 0, 0.5, 1))
    soft = raw(on_sd1, {**unit, "mask": fine, "feather": 4}, **job)
    close(soft, raw(on_sd1, {**unit, "mask": coarse, "feather": 4}, **job))
    assert on_sd1.images({**unit, "mask": fine}, **job) != [pixels(soft)]


def test_a_tile_whose_place_is_not_known(on_sd1: WebUI, unit, base):
    job = {**ultimate(), "script_name": "Hidden upscale probe"}
    said = lambda reply: "is not known" in str(json.loads(reply.json["info"])["infotexts"])  # noqa: E731
    assert said(on_sd1.draw({**unit, "mask": half()}, **job))
    assert not said(on_sd1.draw(unit, **job))
    off = on_sd1.draw({**unit, "mask": half(), "in_upscale": False}, **job)
    assert not said(off)
    assert [pixels(image) for image in off.json["images"]] == on_sd1.images(**job)


def test_details_of_tiles(on_sd1: WebUI, unit, base):
    """A detail inside a tile takes the tile's part of the mask, and its own of that."""
    job = sd_upscale(scripts=detailer(over_init=True, boxes="40,8,56,24"))
    none = sd_upscale(scripts=detailer(DEFAULT, over_init=True, boxes="40,8,56,24"))
    plain = decode(raw(on_sd1, unit, **none))
    edge = decode(raw(on_sd1, {**unit, "mask": half((112, 112), (0.75, 0, 1, 1))}, **job))
    assert torch.equal(edge[:, :48], plain[:, :48])
    assert not torch.equal(edge[:, 80:], plain[:, 80:])


# tiles of the latents


def tiles(method: str, count: int = 3) -> dict[str, Any]:
    return {"width": 128, "height": 96, "steps": 2, "scripts": {"Tiles": {"args": [method, 8, count]}}}


@pytest.mark.parametrize("method", ["multi", "mixture"])
def test_masks_follow_the_tiles_of_latents(on_sd1: WebUI, unit, base, method):
    job = tiles(method)
    whole, plain = raw(on_sd1, unit, **job), raw(on_sd1, **job)
    assert len({pixels(whole), pixels(plain), *on_sd1.images(**{**job, "scripts": {}})}) == 3
    assert on_sd1.images({**unit, "mask": WHITE}, **job) == [pixels(whole)]
    left, right = {**unit, "mask": half()}, {**unit, "mask": half(), "invert": True}
    drawn = raw(on_sd1, left, **job)
    assert pixels(drawn) not in (pixels(whole), pixels(plain))
    close(raw(on_sd1, left, right, **job), whole)
    # However many tiles a call has.
    close(drawn, raw(on_sd1, left, **tiles(method, 1)))
    # The first step's right half, which no tile of the left half touches, is the base's.
    first = {**job, "steps": 1}
    edge = {**unit, "mask": half(box=(0, 0, 0.25, 1))}
    edged, alone = (decode(raw(on_sd1, *units, **first)) for units in ([edge], []))
    assert (edged[:, :32] - alone[:, :32]).abs().mean() > 4 * (edged[:, 96:] - alone[:, 96:]).abs().mean()


def test_tiles_that_cannot_be_followed_are_an_error(on_sd1: WebUI, unit, base):
    reply = on_sd1.draw({**unit, "mask": half()}, **tiles("strided"))
    assert reply.status == 500
    assert "tiles, which a region mask or a pose cannot follow" in reply.json["errors"]
    assert on_sd1.draw(unit, **tiles("strided")).status == 200
