"""What of a reference counts, in the real WebUI: each field against a picture that was cut, covered or faded before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.pictures import images, preprocess

from .harness import WebUI, b64, picture, pixels

WHOLE = picture(7, (96, 64))
PART = WHOLE.crop((24, 0, 72, 32))


def same(webui: WebUI, one: dict[str, Any], two: dict[str, Any], **payload: Any) -> bool:
    """Whether both units draw the same pictures, and not the base's."""
    first, second = webui.images(one, **payload), webui.images(two, **payload)
    assert first != webui.known(**payload)
    return first == second


def test_a_box_is_the_part_cut_out(on_sd1: WebUI, unit):
    boxed = {**unit, "weight": 2, "images": [b64(WHOLE)], "box": [0.25, 0, 0.75, 0.5]}
    assert same(on_sd1, boxed, {**unit, "weight": 2, "images": [b64(PART)]})
    two = {**unit, "weight": 2, "images": [b64(WHOLE), b64(WHOLE)], "box": "; 0.25, 0, 0.75, 0.5"}
    assert same(on_sd1, two, {**unit, "weight": 2, "images": [b64(WHOLE), b64(PART)]})


@pytest.mark.parametrize(("position", "box"), [("left", (0, 0, 64, 64)), ("right", (32, 0, 96, 64))])
def test_a_position_is_the_square_at_that_end(on_sd1: WebUI, unit, position, box):
    placed = {**unit, "weight": 2, "images": [b64(WHOLE)], "position": position}
    assert same(on_sd1, placed, {**unit, "weight": 2, "images": [b64(WHOLE.crop(box))]})


def test_a_reference_mask(on_sd1: WebUI, unit):
    plain = {**unit, "weight": 2, "images": [b64(WHOLE)]}
    assert same(on_sd1, {**plain, "focus": b64(Image.new("L", (8, 8), 255))}, plain)
    half = Image.new("L", WHOLE.size, 255)
    half.paste(0, (48, 0, 96, 64))
    covered = WHOLE.copy()
    covered.paste(images.NEUTRAL, (48, 0, 96, 64))
    assert same(on_sd1, {**plain, "focus": b64(half)}, {**unit, "weight": 2, "images": [b64(covered)]})


def test_each_reference_has_its_own_mask(on_sd1: WebUI, unit):
    half = Image.new("L", WHOLE.size, 255)
    half.paste(0, (48, 0, 96, 64))
    covered = WHOLE.copy()
    covered.paste(images.NEUTRAL, (48, 0, 96, 64))
    masked = {"image": b64(WHOLE), "mask": b64(half)}
    two = {**unit, "weight": 2, "images": [masked, b64(WHOLE)]}
    assert same(on_sd1, two, {**unit, "weight": 2, "images": [b64(covered), b64(WHOLE)]})
    swapped = {**two, "images": [b64(WHOLE), masked], "distribute": "one per picture"}
    assert same(on_sd1, swapped, {**swapped, "images": [b64(WHOLE), b64(covered)]}, batch_size=2)
    white = b64(Image.new("L", (8, 8), 255))
    own = {**two, "images": [{"image": b64(WHOLE), "mask": white}], "focus": b64(half)}
    assert same(on_sd1, own, {**unit, "weight": 2, "images": [b64(WHOLE)]}), "its own mask takes the place of focus"
    reply = on_sd1.draw({**two, "images": [{"image": b64(WHOLE), "mask": b64(Image.new("L", (8, 8), 0))}]})
    assert reply.status == 422
    assert "images[0].mask" in reply.body.decode()


@pytest.mark.parametrize("model", ["sd1-base", "sd1-plus"])
def test_tiles_noise_sharpening_and_negatives_act(on_sd1: WebUI, unit, model):
    plain = {**unit, "model": model, "weight": 2, "images": [b64(WHOLE)]}
    bad = b64(picture(9, (64, 64)))
    drawn = [on_sd1.images({**plain, **fields}) for fields in (
        {}, {"fit": "tiles"}, {"sharpen": 1}, {"noise": 0.3}, {"negative": [bad]}, {"negative": bad, "noise": 0.3},
    )]  # fmt: skip
    assert len({pictures[0] for pictures in drawn}) == 6
    # Noise of 1 leaves nothing of the picture that fades.
    assert same(on_sd1, {**plain, "noise": 1}, {**plain, "noise": 1, "negative": [bad]})


def test_all_of_it_comes_back_from_the_infotext(on_sd1: WebUI, unit):
    fields = {"fit": "crop", "position": "right", "box": "0.1, 0, 1, 1", "sharpen": 0.4, "noise": 0.2}
    shown = {
        "images": [b64(WHOLE)],
        "negative": [b64(picture(9, (64, 64)))],
        "focus": b64(WHOLE.convert("L")),
    }
    reply = on_sd1.draw({**unit, "weight": 2, **fields, **shown})
    assert reply.status == 200, reply.body
    text = json.loads(reply.json["info"])["infotexts"][0]
    for one in (picture(9, (64, 64)), WHOLE.convert("L").convert("RGB")):
        assert images.content_hash(one) in text
    body = {"infotext": text, "alwayson_scripts": {"IP-Adapter": {"args": [shown]}}}
    again = on_sd1.post("/sdapi/v1/txt2img", body)
    assert again.status == 200, again.body
    assert pixels(again.json["images"][0]) == pixels(reply.json["images"][0])


@pytest.mark.parametrize(("field", "value", "expected"), [
    ("position", "middle", "one of center"), ("box", "0, 0, 0, 1", "left < right"), ("box", ";;", None),
    ("box", "0,0,1,1;0,0,1,1", "one box for all"), ("sharpen", 1.5, "from 0 to 1"), ("noise", -1, "from 0 to 1"),
    ("negative", [5], "base64"), ("negative", ["no"], "no picture"), ("focus", "no", "no picture"),
    ("fit", "mosaic", "tiles"),
])  # fmt: skip
def test_bad_values_are_refused_with_the_fields_own_message(on_sd1: WebUI, unit, field, value, expected):
    reply = on_sd1.draw({**unit, field: value})
    if expected is None:
        assert reply.status == 200, reply.body
        return
    assert reply.status == 422
    detail = reply.json["detail"]
    assert detail["field"].startswith(field)
    assert expected in detail["message"]
    assert on_sd1.images() == on_sd1.known()


def test_the_largest_tile_count_is_bounded() -> None:
    tiles = preprocess.tiles(Image.new("RGB", (4000, 2)), preprocess.Preprocess("tiles"))
    assert len(tiles) == preprocess.MAX_TILES
