"""Routes, infotext, a real client, authentication."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from lib_ipadapter import __version__
from lib_ipadapter.unit import FIELD_NAMES

from .harness import WebUI, b64, picture, pixels


def test_routes(on_sd1: WebUI):
    assert on_sd1.get("/ip-adapter/version").json == {"version": __version__}
    assert "sd1-base" in on_sd1.get("/ip-adapter/model_list").json["model_list"]
    assert tuple(on_sd1.get("/ip-adapter/schema").json["properties"]) == (*FIELD_NAMES, "preset")
    report = on_sd1.post("/ip-adapter/inspect", {"model": "sd1-plus.safetensors"}).json
    assert (report["variant"], report["layers"], report["encoder"]) == ("plus", 16, "tiny-vit")
    assert "/" not in json.dumps(report["file"])


@pytest.mark.parametrize("body", [{}, {"model": 3}, [], "sd1-base", {"model": " "}, {"model": "../../etc/passwd"}])
def test_inspect_refuses(on_sd1: WebUI, body):
    reply = on_sd1.post("/ip-adapter/inspect", body)
    assert reply.status == 422
    assert reply.json["detail"]["field"] == "model"


def test_a_file_added_while_running_is_found(on_sd1: WebUI, unit):
    folder = on_sd1.data / "models" / "ipadapter"
    (folder / "added.safetensors").write_bytes((folder / "sd1-base.safetensors").read_bytes())
    try:
        assert on_sd1.images({**unit, "model": "added"}) == on_sd1.known(unit)
    finally:
        (folder / "added.safetensors").unlink()


def infotext(webui: WebUI, *units: object, **payload: object) -> str:
    reply = webui.draw(*units, **payload)
    return json.loads(reply.json["info"])["infotexts"][0]


def test_infotext_holds_what_is_not_default(on_sd1: WebUI, unit):
    text = infotext(on_sd1, {**unit, "weight": 0.75, "fit": "pad"})
    assert "IP-Adapter: " in text
    for part in ("sd1-base", "0.75", "pad"):
        assert part in text
    assert "combine" not in text
    assert "IP-Adapter" not in infotext(on_sd1)


def test_infotext_draws_the_same_picture_again(on_sd1: WebUI, unit):
    made = {**unit, "weight": 0.3, "end": 0.7, "fit": "stretch"}
    second = {**unit, "model": "sd1-plus", "weight": -0.5, "combine": "average"}
    units = [made, second]
    made_with = on_sd1.draw(*units, seed=11, steps=4)
    text = json.loads(made_with.json["info"])["infotexts"][0]
    drawn = [pixels(image) for image in made_with.json["images"]]
    pictures = [{"images": unit["images"]}, {"images": unit["images"]}]
    body = {"infotext": text, "alwayson_scripts": {"IP-Adapter": {"args": [pictures]}}}
    reply = on_sd1.post("/sdapi/v1/txt2img", body)
    assert reply.status == 200, reply.body[:800]
    assert [pixels(image) for image in reply.json["images"]] == drawn


def test_infotext_without_the_pictures_is_refused(on_sd1: WebUI, unit):
    reply = on_sd1.post("/sdapi/v1/txt2img", {"infotext": infotext(on_sd1, unit)})
    assert reply.status == 422
    assert "at least one reference image" in reply.json["errors"]


def test_a_real_client(on_sd1: WebUI, unit):
    webuiapi = pytest.importorskip("webuiapi", reason="webuiapi is not installed")
    api = webuiapi.WebUIApi(host="127.0.0.1", port=on_sd1.port)
    result = api.txt2img(
        prompt="a red house", steps=2, width=64, height=64, seed=3, sampler_name="Euler",
        alwayson_scripts={"IP-Adapter": {"args": [unit]}},
    )  # fmt: skip
    plain = api.txt2img(prompt="a red house", steps=2, width=64, height=64, seed=3, sampler_name="Euler")
    assert result.image.tobytes() != plain.image.tobytes()
    assert result.image.size == (64, 64)


def test_a_data_uri_is_a_picture_too(on_sd1: WebUI, unit):
    uri = {**unit, "images": ["data:image/png;base64," + unit["images"][0]]}
    assert on_sd1.images(uri) == on_sd1.known(unit)


def test_an_oriented_photo_arrives_as_seen(on_sd1: WebUI, unit):
    image = picture(0)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    turned = {**unit, "images": [base64.b64encode(buffer.getvalue()).decode()]}
    assert on_sd1.images(turned) == on_sd1.images({**unit, "images": [b64(image)]})


def test_script_info_is_listed(on_sd1: WebUI):
    info = {s["name"]: s for s in on_sd1.get("/sdapi/v1/script-info").json if not s["is_img2img"]}
    assert info["ip-adapter"]["is_alwayson"]
    labels = [arg["label"] for arg in info["ip-adapter"]["args"]]
    assert labels.count("Weight") == 3
