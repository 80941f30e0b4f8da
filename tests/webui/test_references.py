"""Saved embeds, folders, and one reference per picture, in the real WebUI."""

from __future__ import annotations

import json
import urllib.parse
from contextlib import contextmanager
from typing import Any

import pytest

from .harness import WebUI, b64, picture, pixels
from .test_weights import grid

COMBINES = ("concat", "average", "norm average", "add", "subtract")
PICTURES = [b64(picture(seed)) for seed in (11, 12, 13)]


@pytest.fixture
def unit() -> dict[str, Any]:
    return {"model": "sd1-base", "images": PICTURES[:1], "weight": 2}


@contextmanager
def saved(webui: WebUI, name: str, unit: dict[str, Any], **more: Any):
    reply = webui.post("/ip-adapter/embeds", {"name": name, "unit": unit, **more})
    assert reply.status == 200, reply.body
    try:
        yield reply.json["embeds"]
    finally:
        assert webui.request("DELETE", f"/ip-adapter/embeds/{urllib.parse.quote(name)}").status == 200


# embeds


@pytest.mark.parametrize("model", ["sd1-base", "sd1-plus", "sd1-full"])
def test_saved_embeds_draw_what_their_pictures_drew(on_sd1: WebUI, unit, model):
    unit = {**unit, "model": model, "images": [{"image": PICTURES[0], "weight": 0.8}, PICTURES[1]]}
    with saved(on_sd1, "Ein Gesicht", unit, title="A face"):
        for how in COMBINES:
            drawn = on_sd1.images({**unit, "combine": how})
            assert on_sd1.images({**unit, "combine": how, "images": [{"embeds": "Ein Gesicht"}]}) == drawn
        assert drawn != on_sd1.known()
        report = on_sd1.get("/ip-adapter/embeds").json["embeds"]["Ein Gesicht"]
        assert (report["title"], report["encoder"], len(report["pictures"])) == ("A face", "tiny-vit", 2)
        assert "Ein Gesicht" not in str(on_sd1.get("/ip-adapter/model_list").json)
    assert on_sd1.get("/ip-adapter/embeds").json == {"embeds": {}}


def test_they_mix_with_pictures(on_sd1: WebUI, unit):
    with saved(on_sd1, "one", unit):
        for how in COMBINES:
            fields = {**unit, "combine": how}
            mixed = [PICTURES[1], {"embeds": "one", "weight": 0.5}]
            plain = [PICTURES[1], {"image": PICTURES[0], "weight": 0.5}]
            assert on_sd1.images({**fields, "images": mixed}) == on_sd1.images({**fields, "images": plain})


@pytest.mark.parametrize("model", ["sd1-base", "sd1-plus"])
def test_no_encoder_is_needed(on_sd1: WebUI, unit, model):
    unit = {**unit, "model": model}
    folder = on_sd1.data / "models" / "clip_vision"
    drawn = on_sd1.images(unit)
    with saved(on_sd1, "one", unit):
        folder.rename(folder.with_name("elsewhere"))
        try:
            assert on_sd1.images({**unit, "images": [{"embeds": "one"}]}) == drawn
            mixed = on_sd1.draw({**unit, "images": [{"embeds": "one"}, PICTURES[1]]})
            assert mixed.status == 422
            assert "no known image encoder gives" in mixed.json["detail"]["message"]  # its config is gone, too
        finally:
            folder.with_name("elsewhere").rename(folder)


def test_embeds_that_do_not_serve_the_adapter_are_refused(on_sd1: WebUI, unit):
    with saved(on_sd1, "pooled", unit):
        reply = on_sd1.draw({**unit, "model": "sd1-plus", "images": [{"embeds": "pooled"}]})
        assert reply.status == 422
        message = reply.json["detail"]["message"]
        assert "pooled features of tiny-vit" in message
        assert "takes penultimate features of tiny-vit" in message
    file = on_sd1.data / "models" / "ipadapter" / "embeds" / "broken.safetensors"
    file.write_bytes(b"no")
    try:
        reply = on_sd1.draw({**unit, "images": [{"embeds": "broken"}]})
        assert reply.status == 422
        assert "broken.safetensors" in reply.json["detail"]["message"]
    finally:
        file.unlink()


def test_the_routes_refuse(on_sd1: WebUI, unit):
    for body in (
        {}, [], {"name": "x"}, {"name": "../x", "unit": unit}, {"unit": unit}, {"name": "x", "unit": {}},
        {"name": "x", "unit": {**unit, "weight": 99}}, {"name": "x", "unit": unit, "title": 3},
        {"name": "x", "unit": {**unit, "images": ["no picture"]}},
    ):  # fmt: skip
        reply = on_sd1.post("/ip-adapter/embeds", body)
        assert reply.status == 422, (body, reply.body)
        assert any(word in reply.json["errors"] for word in ("expected", "base64", "choose one under Model"))
    assert on_sd1.request("DELETE", "/ip-adapter/embeds/none").status == 422
    assert on_sd1.request("DELETE", "/ip-adapter/embeds/..%2Fx").status in (404, 422)
    for name in ("none", "../../sd1-base", "/etc/passwd"):
        for kind in ("embeds", "folder"):
            reply = on_sd1.draw({**unit, "images": [{kind: name}]})
            assert reply.status == 422, reply.body[:300]


def infotexts(reply: Any) -> list[str]:
    return json.loads(reply.json["info"])["infotexts"]


def test_an_infotext_with_embeds_needs_nothing_else(on_sd1: WebUI, unit):
    unit = {**unit, "end": 0.75, "combine": "average"}
    with saved(on_sd1, "one, two", {**unit, "images": PICTURES[:2]}):
        reply = on_sd1.draw({**unit, "images": [{"embeds": "one, two", "weight": 0.5}]}, seed=8)
        again = on_sd1.post("/sdapi/v1/txt2img", {"infotext": infotexts(reply)[0]})
        assert again.status == 200, again.body
        assert pixels(again.json["images"][0]) == pixels(reply.json["images"][0])
        assert infotexts(again) == infotexts(reply)


# folders


@pytest.fixture
def trip(on_sd1: WebUI):
    folder = on_sd1.data / "models" / "ipadapter" / "references" / "trip"
    folder.mkdir(parents=True)
    for name, seed in (("2.png", 11), ("10.png", 12), ("30.png", 13)):
        picture(seed).save(folder / name)
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_folder_is_its_pictures_in_order(on_sd1: WebUI, unit, trip):
    (trip / "notes.txt").write_text("a caption")
    assert on_sd1.get("/ip-adapter/folders").json == {"folders": {"trip": 3}}
    drawn = on_sd1.images({**unit, "images": PICTURES, "combine": "subtract"})
    reply = on_sd1.draw({**unit, "images": [{"folder": "trip"}], "combine": "subtract"})
    assert [pixels(image) for image in reply.json["images"]] == drawn
    assert "left out of the folder trip, as no pictures: notes.txt" in on_sd1.log
    again = on_sd1.post("/sdapi/v1/txt2img", {"infotext": infotexts(reply)[0]})
    assert [pixels(image) for image in again.json["images"]] == drawn


def test_a_file_that_is_no_picture_is_named(on_sd1: WebUI, unit, trip):
    (trip / "fake.png").write_bytes(b"not a picture")
    reply = on_sd1.draw({**unit, "images": [{"folder": "trip"}]})
    assert reply.status == 422
    assert "fake.png" in reply.json["detail"]["message"]


# one per picture


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("prompt", ["a red house on a hill", "a red house AND a blue sky :0.5 AND a hill"])
def test_each_picture_is_that_of_a_job_with_its_own_reference(on_sd1: WebUI, unit, together, prompt):
    payload = {"batch_size": 2, "n_iter": 2, "do_not_save_grid": True, "prompt": prompt, "steps": 2}
    images = [PICTURES[0], {"image": PICTURES[1], "weight": 0.5}, PICTURES[2]]
    other = {**unit, "model": "sd1-plus", "weight": 0.7}
    with on_sd1.set(batch_cond_uncond=together):
        turns = on_sd1.images({**unit, "images": images, "distribute": "one per picture"}, other, **payload)
        alone = [on_sd1.images({**unit, "images": [image]}, other, **payload)[-4:] for image in images]
        wanted = [alone[k % 3][k] for k in range(4)]
        assert turns[-4:] == wanted
        assert len(set(wanted)) == 4
        assert turns[-4:] not in alone


def test_a_batch_of_one_draws_the_same(on_sd1: WebUI, unit):
    turns = {**unit, "images": PICTURES, "distribute": "one per picture"}
    drawn = on_sd1.images(turns, n_iter=3, seed=4)[-3:]
    assert drawn == [on_sd1.images({**unit, "images": [PICTURES[k]]}, seed=4 + k)[0] for k in range(3)]


@pytest.mark.parametrize("fields", [
    {"weight_type": "style transfer precise"}, {"scaling": "K+mean(V) with C penalty"}, {"model": "sd1-plus"},
    {"end": 0.5}, {"combine": "average"},
])  # fmt: skip
def test_with_the_other_fields(on_sd1: WebUI, unit, fields):
    payload = {"batch_size": 2, "do_not_save_grid": True, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent",
               "denoising_strength": 0.7}  # fmt: skip
    unit = {**unit, **fields}
    turns = on_sd1.images({**unit, "images": PICTURES[:2], "distribute": "one per picture"}, **payload)[-2:]
    assert turns == [on_sd1.images({**unit, "images": [PICTURES[k]]}, **payload)[-2:][k] for k in range(2)]


def test_an_infotext_is_that_of_its_own_picture(on_sd1: WebUI, unit):
    with saved(on_sd1, "one", {**unit, "images": PICTURES[2:]}):
        images = [PICTURES[0], {"embeds": "one", "weight": 0.5}]
        reply = on_sd1.draw({**unit, "images": images, "distribute": "one per picture"}, n_iter=3, seed=4)
        drawn = [pixels(image) for image in reply.json["images"]][-3:]
        texts = infotexts(reply)[-3:]
        assert "distribute" not in "".join(texts)
        again = on_sd1.post("/sdapi/v1/txt2img", {"infotext": texts[1]})
        assert again.status == 200, again.body
        assert [pixels(image) for image in again.json["images"]] == drawn[1:2]


def test_a_folder_one_by_one(on_sd1: WebUI, unit, trip):
    fields = {**unit, "distribute": "one per picture"}
    one_by_one = on_sd1.images({**fields, "images": [{"folder": "trip"}]}, n_iter=2, batch_size=2)
    assert one_by_one == on_sd1.images({**fields, "images": PICTURES}, n_iter=2, batch_size=2)


def test_pictures_with_prompts_of_their_own(on_sd1: WebUI, unit):
    """Prompts of several AND parts each: the rows of a picture are told by its own prompt."""
    prompts = ["a house AND a tree", "a hill", "a lake AND a boat AND a cloud"]
    payload = {"batch_size": 3, "do_not_save_grid": True, "prompt": prompts, "negative_prompt": "blurry"}
    probed = {"Probe": {"args": ["prompts:" + "|".join(prompts)]}}
    payload["prompt"] = "x"
    turns = on_sd1.images({**unit, "images": PICTURES, "distribute": "one per picture"}, scripts=probed, **payload)[-3:]
    wanted = [on_sd1.images({**unit, "images": [PICTURES[k]]}, scripts=probed, **payload)[-3:][k] for k in range(3)]
    assert turns == wanted


def test_subtract_and_unequal_embeds_are_refused(on_sd1: WebUI, unit):
    fields = {**unit, "distribute": "one per picture"}
    reply = on_sd1.draw({**fields, "images": PICTURES, "combine": "subtract"})
    assert reply.status == 422
    assert "at least two" in reply.json["detail"]["message"]
    with saved(on_sd1, "two", {**unit, "images": PICTURES[:2]}):
        images = [{"embeds": "two"}, PICTURES[0]]
        reply = on_sd1.draw({**fields, "images": images}, batch_size=2)
        assert reply.status == 422
        assert "Set combine to average" in reply.json["detail"]["message"]
        assert on_sd1.draw({**fields, "images": images, "combine": "average"}, batch_size=2).status == 200


def test_a_job_inside_takes_its_pictures_reference(on_sd1: WebUI, unit):
    """As ADetailer: each picture is drawn again by a job of its own."""
    nested = {"Probe": {"args": ["nested:ip_adapter"]}}
    payload = {"batch_size": 2, "do_not_save_grid": True, "scripts": nested}
    turns = on_sd1.images({**unit, "images": PICTURES[:2], "distribute": "one per picture"}, **payload)[-2:]
    wanted = [on_sd1.images({**unit, "images": [PICTURES[k]]}, **payload)[-2:][k] for k in range(2)]
    assert turns == wanted
    assert len(set(turns)) == 2


def test_img2img_batch_takes_a_reference_per_file(on_sd1: WebUI, unit, tmp_path):
    for k in range(3):
        picture(20 + k, (64, 64)).save(tmp_path / f"{k}.png")
    (tmp_path / "1.png").write_bytes(b"not a picture, and passed over")
    turns = {**unit, "images": PICTURES, "distribute": "one per picture"}

    def batch(fields: dict[str, Any]) -> list[str]:
        reply = on_sd1.post("/probe/batch", {"folder": str(tmp_path), "unit": fields})
        assert reply.status == 200, reply.body
        return [pixels(image) for image in reply.json["images"]]

    drawn = batch(turns)
    assert len(set(drawn)) == 2
    assert drawn == [batch({**unit, "images": [PICTURES[k]]})[k // 2] for k in (0, 2)]


def test_a_grid_of_references_by_name(on_sd1: WebUI, unit, trip):
    with saved(on_sd1, "one", unit):
        cells, _ = grid(on_sd1, [unit], ("[IP-Adapter] Reference file", "embeds: one, folder: trip"))
        wanted = [on_sd1.images({**unit, "images": images})[0] for images in (PICTURES[:1], PICTURES)]
        assert cells == wanted
    reply = grid(on_sd1, [unit], ("[IP-Adapter] Reference file", "embeds: one"))
    assert reply.status == 422
