"""The X/Y/Z plot's axes: each field of a unit is reached by the axis of its name, and a cell is what the unit draws."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from lib_ipadapter.unit import FACE, FIELDS

from .harness import Reply, WebUI, b64, picture, pixels

WIDE = (128, 64)
# field: a value other than the unit's, as it is typed
VALUES = {
    "enabled": "off", "model": "sd1-plus", "weight": "0.4", "start": "0.5", "end": "0.5", "fit": "pad",
    "combine": "average", "distribute": "one per picture", "position": "left", "box": "0, 0, 0.5, 1", "sharpen": "1",
    "noise": "0.5", "weight_type": "style transfer", "composition": "0.3", "layers": "0:1", "curve": "0:0.2, 1:0.6",
    "interpolation": "step", "passes": "hires", "hires_factor": "0.5", "scaling": "K+V",
    "invert": "off", "feather": "4", "in_detailer": "no", "in_upscale": "off", "in_loopback": "off",
    "region": "mask", "region_face": "leftmost", "grow": "2",
}  # fmt: skip
# What must be so for the value to act
BESIDE: dict[str, dict[str, Any]] = {
    "composition": {"weight_type": "style and composition"},
    "interpolation": {"curve": "0:0.2, 1:0.9"},
    "combine": {"images": [b64(picture(0, WIDE)), b64(picture(1))]},
    "scaling": {"weight": 0.5},
    "noise": {"model": "sd1-plus"},
}
# Their effect needs another kind of job
WITHOUT_EFFECT = {
    "distribute", "hires_factor", "invert", "feather", "in_detailer", "in_upscale", "in_loopback", "region",
    "region_face", "grow",
}  # fmt: skip
AXES = [field for field in FIELDS if field.in_infotext and field.kind != "image"]
PLAIN = [field for field in AXES if field.group != FACE]  # those of faces: test_faces.py


def label(field: Any) -> str:
    named = {"images": "Reference file", "negative": "Negative reference file", "pose": "Pose file"}
    return f"[IP-Adapter] {named.get(field.name, field.label)}"


@pytest.fixture(scope="module")
def wide(reference: str) -> dict[str, Any]:
    """A unit whose reference is twice as wide as high, so that fit and position count."""
    return {"model": "sd1-base", "images": [b64(picture(0, WIDE))]}


@functools.cache
def names(webui: WebUI) -> list[str]:
    """The axes, in the order of the plot's indices."""
    scripts = webui.get("/sdapi/v1/script-info").json
    plot = next(one for one in scripts if one["name"] == "x/y/z plot" and not one["is_img2img"])
    return plot["args"][0]["choices"]


def plot(webui: WebUI, unit: dict[str, Any], axis: str, *values: str) -> Reply:
    """A plot of one axis with the cells' pictures beside the grid. Values with a comma are quoted, as a user does."""
    typed = ",".join(f'"{value}"' if "," in value else value for value in values)
    x = [names(webui).index(axis), typed, list(values)]
    args = [*x, 0, "", [], 0, "", [], False, True, False, False, False, False, False, 0, True]
    return webui.draw(unit, script_name="x/y/z plot", script_args=args, steps=2)


def test_each_axis_has_a_name_of_its_own(on_sd1: WebUI) -> None:
    """F12."""
    known = names(on_sd1)
    assert len(known) == len(set(known))
    assert [label(field) for field in AXES if label(field) not in known] == []


@pytest.mark.parametrize("field", PLAIN, ids=lambda field: field.name)
def test_a_cell_is_what_the_unit_draws_with_the_value(on_sd1: WebUI, wide: dict[str, Any], field: Any) -> None:
    unit: dict[str, Any] = {**wide, **BESIDE.get(field.name, {})}
    if field.kind == "images":
        path = Path(on_sd1.data) / f"{field.name}.png"
        picture(4, (96, 64)).save(path)
        typed, given = str(path), [b64(picture(4, (96, 64)))]
    else:
        typed = VALUES[field.name]
        given = {"off": False}.get(typed, typed) if field.kind == "bool" else typed
        given = float(typed) if field.kind == "number" else given
    reply = plot(on_sd1, unit, label(field), typed)
    assert reply.status == 200, reply.body[:1000]
    cell = pixels(reply.json["images"][-1])
    changed, plain = on_sd1.images({**unit, field.name: given}, steps=2), on_sd1.known(unit, steps=2)
    assert [cell] == changed
    assert (changed == plain) == (field.name in WITHOUT_EFFECT)


@pytest.mark.parametrize(("axis", "value", "words"), [
    ("Weight", "9", "weight"), ("Model", "no such", "no such"), ("Reference file", "/no/such.png", "no such file"),
    ("Weight over steps", "2:x", "curve"), ("Combine", "mixed", "combine"),
])  # fmt: skip
def test_a_value_that_is_none_is_refused_before_the_first_cell(
    on_sd1: WebUI, wide: dict[str, Any], axis: str, value: str, words: str
) -> None:
    before = on_sd1.get("/probe/hooks").json["steps"]
    reply = plot(on_sd1, wide, f"[IP-Adapter] {axis}", value)
    assert reply.status == 422, reply.body[:1000]
    assert words in reply.json["errors"]
    assert f"[IP-Adapter] {axis}" in reply.json["errors"]
    assert on_sd1.get("/probe/hooks").json["steps"] == before
