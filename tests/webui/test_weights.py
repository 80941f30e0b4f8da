"""Weights over layers, steps and passes in the real WebUI, and the axes of its X/Y/Z plot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_ipadapter.unit.weights import TYPES

from .harness import WebUI, b64, picture, pixels

HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7,
         "hr_second_pass_steps": 3}  # fmt: skip
AS_LINEAR = {"linear": "0-15:1", "weak middle": "0-5:1, 6:0.2, 7-15:1", "composition": "4:0.25, 5:1"}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_acts_and_comes_back_from_the_infotext(on_sd1: WebUI, unit, kind):
    fields = {**unit, "weight": 2, "weight_type": kind, "composition": 1.5}
    reply = on_sd1.draw(fields)
    assert reply.status == 200, reply.body
    drawn = pixels(reply.json["images"][0])
    assert drawn != on_sd1.known()[0]
    if kind in AS_LINEAR:
        assert on_sd1.images({**unit, "weight": 2, "layers": AS_LINEAR[kind]}) == [drawn]
    # The pictures again, the rest from the text
    body = {"infotext": json.loads(reply.json["info"])["infotexts"][0],
            "alwayson_scripts": {"IP-Adapter": {"args": [{"images": unit["images"]}]}}}  # fmt: skip
    again = on_sd1.post("/sdapi/v1/txt2img", body)
    assert again.status == 200, again.body
    assert pixels(again.json["images"][0]) == drawn


def test_types_of_sdxl_layers(on_sdxl: WebUI, unit):
    unit = {**unit, "model": "sdxl-base", "weight": 2}
    style = on_sdxl.images({**unit, "weight_type": "style transfer"})
    assert style == on_sdxl.images({**unit, "layers": "6:1"})
    assert on_sdxl.images({**unit, "weight_type": "composition"}) == on_sdxl.images({**unit, "layers": {"3": 1}})
    assert style not in (on_sdxl.known(), on_sdxl.known(unit))
    reply = on_sdxl.draw({**unit, "layers": "11:1"})
    assert reply.status == 422
    assert "layers from 0 to 10" in reply.json["detail"]["message"]


@pytest.mark.parametrize("mode", ["txt2img", "img2img"])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ SDE"])
def test_a_curve_in_steps_is_start_and_end(on_sd1: WebUI, unit, sampler, mode):
    more: dict[str, Any] = {"sampler_name": sampler, "steps": 4, "mode": mode}
    if mode == "img2img":
        more |= {"init_images": [b64(picture(3, (64, 64)))], "denoising_strength": 0.8}
    curve = {"curve": "0:1, 0.5:0", "interpolation": "step"}
    assert on_sd1.images({**unit, **curve}, **more) == on_sd1.images({**unit, "end": 0.5}, **more)
    rising = on_sd1.images({**unit, "curve": [[0, 0], [1, 2]]}, **more)
    base = on_sd1.images(**more)
    assert rising not in (on_sd1.images(unit, **more), base)
    assert on_sd1.images({**unit, "curve": "0:0"}, **more) == base


def test_passes_of_hires_fix(on_sd1: WebUI, unit):
    def draw(**fields: Any) -> list[str]:
        return on_sd1.images({**unit, **fields}, **HIRES)

    both, first, second, base = draw(), draw(passes="first"), draw(passes="hires"), on_sd1.known(**HIRES)
    assert len({*both, *first, *second, *base}) == 4
    assert draw(hires_factor=0) == first
    assert draw(weight=0.5, passes="hires", hires_factor=2) == second
    # Without hires fix there is one pass, the first.
    assert on_sd1.images({**unit, "passes": "hires"}) == on_sd1.known()


@pytest.mark.parametrize(("field", "value"), [
    ("weight_type", "strong"), ("layers", "0:1, 0:2"), ("layers", "16:1"), ("curve", "0.5:1, 0:1"), ("curve", "2:1"),
    ("composition", "much"), ("interpolation", "spline"), ("passes", "third"), ("hires_factor", 6),
])  # fmt: skip
def test_bad_values_are_refused_with_the_fields_own_message(on_sd1: WebUI, unit, field, value):
    reply = on_sd1.draw({**unit, field: value})
    assert reply.status == 422
    assert reply.json["detail"]["field"] == field
    assert "expected" in reply.json["detail"]["message"]


# presets


def test_presets_over_the_api(on_sd1: WebUI, unit):
    settings = {"model": unit["model"], "weight": 0.6, "weight_type": "ease in", "curve": [[0, 1], [1, 0]]}
    saved = on_sd1.post("/ip-adapter/presets", {"name": "soft", "unit": settings})
    assert saved.status == 200, saved.body
    try:
        listed = on_sd1.get("/ip-adapter/presets").json["presets"]
        assert listed["soft"]["curve"] == "0:1, 1:0"
        wanted = on_sd1.known({**unit, **settings})
        assert on_sd1.images({"preset": "soft", "images": unit["images"]}) == wanted
        stronger = {"preset": "soft", "images": unit["images"], "weight": 2}
        assert on_sd1.images(stronger) == on_sd1.images({**unit, **settings, "weight": 2})
        assert on_sd1.post("/ip-adapter/presets", {"name": "../x", "unit": settings}).status == 422
        assert on_sd1.post("/ip-adapter/presets", {"name": "bad", "unit": {"weight": 99}}).status == 422
        assert on_sd1.post("/ip-adapter/presets", {"name": "bad"}).status == 422
        reply = on_sd1.draw({"preset": "none", "images": unit["images"]})
        assert reply.status == 422
        assert "soft" in reply.json["detail"]["message"]
    finally:
        deleted = on_sd1.request("DELETE", "/ip-adapter/presets", {"name": "soft"})
    assert deleted.status == 200
    assert "soft" not in on_sd1.get("/ip-adapter/presets").json["presets"]


# X/Y/Z plot


def grid(webui: WebUI, units: list[Any], *axes: tuple[str, Any], mode: str = "txt2img") -> Any:
    """The plot's cells as hashes, or the reply where it is refused. Values of axes with choices come as a list."""
    info = next(
        entry for entry in webui.get("/sdapi/v1/script-info").json
        if entry["name"] == "x/y/z plot" and entry["is_img2img"] == (mode == "img2img")
    )  # fmt: skip
    labels = info["args"][0]["choices"]
    labels = [label[0] if isinstance(label, list) else label for label in labels]
    args: list[Any] = []
    for label, values in [*axes, *[("Nothing", "")] * (3 - len(axes))]:
        text, chosen = ("", values) if isinstance(values, list) else (values, [])
        args += [labels.index(label), text, chosen]
    args += [False, True, False, False, False, False, False, 0, False]
    reply = webui.draw(*units, mode=mode, script_name="x/y/z plot", script_args=args)
    if reply.status != 200:
        return reply
    return [pixels(image) for image in reply.json["images"][1:]], json.loads(reply.json["info"])["infotexts"][1:]


def test_a_grid_of_weight_and_type(on_sd1: WebUI, unit):
    cells, texts = grid(
        on_sd1,
        [unit],
        ("[IP-Adapter] Weight", "0, 0.5, 1"),
        ("[IP-Adapter] Weight type", ["linear", "composition"]),
    )
    drawn = [
        on_sd1.images({**unit, "weight": weight, "weight_type": kind})[0]
        for kind in ("linear", "composition")
        for weight in (0, 0.5, 1)
    ]
    assert cells == drawn
    assert '"weight_type": "composition"' in texts[-1].replace('\\"', '"')
    assert cells[0] == cells[3] == on_sd1.known()[0]


def test_a_grid_of_models_references_and_off(on_sd1: WebUI, unit, tmp_path):
    files = []
    for seed in (5, 6):
        files.append(tmp_path / f"reference {seed}.png")
        picture(seed).save(files[-1])
    cells, texts = grid(
        on_sd1, [unit], ("[IP-Adapter] Reference file", ", ".join(map(str, files))),
        ("[IP-Adapter] Model", ["sd1-base", "sd1-plus"]), ("[IP-Adapter] Enable", ["on", "off"]),
    )  # fmt: skip
    wanted = [
        on_sd1.images({**unit, "images": [b64(picture(seed))], "model": model})[0]
        for model in ("sd1-base", "sd1-plus")
        for seed in (5, 6)
    ]
    assert cells == wanted + on_sd1.known() * 4
    assert all("IP-Adapter" in text for text in texts[:4])
    assert not any("IP-Adapter:" in text for text in texts[4:])


@pytest.mark.parametrize(("label", "values", "message"), [
    ("[IP-Adapter] Weight", "0, 9", "weight: got 9"), ("[IP-Adapter] Model", ["sd1-base", "no such"], "no such"),
    ("[IP-Adapter] Weight over steps", '"0:1, 1:0", 5', "curve: got"),
    ("[IP-Adapter] Reference file", "/no/such.png", "no such file"),
    ("[IP-Adapter 2] Weight", "0, 1", "unit 2"),
])  # fmt: skip
def test_a_grid_with_bad_values_is_refused_before_anything_is_drawn(on_sd1: WebUI, unit, label, values, message):
    drawn = on_sd1.known(unit)
    reply = grid(on_sd1, [unit], (label, values))
    assert reply.status == 422, reply
    assert message in reply.json["detail"]["message"]
    assert on_sd1.images(unit) == drawn
