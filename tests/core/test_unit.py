from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_ipadapter.errors import UnitError
from lib_ipadapter.unit import FIELDS, Reference, Unit, parse_units, schema

GOOD = {"model": "a", "images": ["aGk="]}


# The order is a surface: infotext and saved script arguments depend on it.
ORDER = [
    "enabled",
    "images",
    "model",
    "weight",
    "start",
    "end",
    "fit",
    "combine",
    "distribute",
    "position",
    "box",
    "sharpen",
    "noise",
    "negative",
    "focus",
    "weight_type",
    "composition",
    "layers",
    "curve",
    "interpolation",
    "passes",
    "hires_factor",
    "scaling",
    "maps",
    "mask",
    "region",
    "invert",
    "feather",
    "in_detailer",
    "in_upscale",
    "in_loopback",
    "face",
    "shortcut",
    "lora",
    "kind",
    "pulid",
    "pulid_mode",
    "zero_tokens",
    "region_face",
    "grow",
    "pose",
    "pose_from",
    "pose_face",
    "pose_weight",
    "pose_start",
    "pose_end",
    "control_model",
]


def test_the_fields_are_those_of_the_dataclass_in_the_known_order():
    assert [field.name for field in FIELDS] == [field.name for field in dataclasses.fields(Unit)] == ORDER
    assert {f.name: f.default for f in FIELDS} == vars(Unit())
    assert all(field.label and field.help.endswith(".") for field in FIELDS)
    assert len({field.label for field in FIELDS}) == len(FIELDS)
    json.dumps(schema(), allow_nan=False)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"model": ""}, "no model is chosen.*choose one under Model"),
    ({"images": []}, "there is no image.*add one"),
    ({"invert": True}, "Invert is on.*paint one under Region"),
    ({"start": 0.8, "end": 0.3}, r"Start \(0.8\) is after End.*0.3"),
    ({"pose_start": 0.8, "pose_end": 0.3}, r"Pose start \(0.8\) is after Pose end.*0.3"),
    ({"combine": "subtract"}, "Combine is subtract.*there is 1 image.*choose concat"),
    ({"combine": "average", "images": [{"image": "aGk=", "weight": 0}]}, "Combine is average.*are 0,.*choose concat"),
    ({"layers": "0:1", "weight_type": "style transfer"}, "Weight per layer works only with linear.*clear it"),
    ({"mask": "aGk=", "region": "inpaint"}, "there is a mask.*take the mask away"),
])  # fmt: skip
def test_what_the_panel_can_bring_about_is_refused_by_its_labels(wrong: dict[str, object], said: str):
    """F14: with the remedy; field, value and expectation stay in ``detail``."""
    with pytest.raises(UnitError, match=f"^{said}") as error:
        Unit.parse({**GOOD, **wrong})
    assert error.value.detail["field"] in {field.name for field in FIELDS}
    assert error.value.detail["value"]
    assert error.value.detail["expected"]


def test_defaults():
    unit = Unit.parse(GOOD)
    assert unit == Unit(model="a", images=(Reference("aGk="),))
    assert unit.changed() == {"model": "a"}


def test_images_in_all_their_forms():
    unit = Unit.parse({**GOOD, "images": ["aa", {"image": "bb"}, {"image": "cc", "weight": 0.5}]})
    assert unit.images == (Reference("aa"), Reference("bb"), Reference("cc", 0.5))
    assert Unit.parse({**GOOD, "images": "aa"}).images == (Reference("aa"),)


def test_a_disabled_unit_needs_nothing():
    assert not Unit.parse({"enabled": False}).enabled


BAD = [
    ({"weight": "strong"}, "weight", "a number from -1 to 5"),
    ({"weight": 5.1}, "weight", "a number from -1 to 5"),
    ({"weight": -2}, "weight", "a number from -1 to 5"),
    ({"weight": [1]}, "weight", "a number"),
    ({"weight": math.nan}, "weight", "a number"),
    ({"weight": True}, "weight", "a number"),
    ({"weight": None}, "weight", "a number"),
    ({"start": -0.1}, "start", "a number from 0 to 1"),
    ({"end": 2}, "end", "a number from 0 to 1"),
    ({"start": 0.6, "end": 0.5}, "start", "not above end"),
    ({"fit": 1}, "fit", "crop, pad, stretch"),
    ({"fit": "squash"}, "fit", "crop, pad, stretch"),
    ({"combine": 3}, "combine", "concat, average"),
    ({"enabled": "yes"}, "enabled", "true or false"),
    ({"model": 7}, "model", "a string"),
    ({"model": "  "}, "model", "name of an adapter"),
    ({"images": None}, "images", "at least one"),
    ({"images": []}, "images", "at least one"),
    ({"images": [3]}, "images[0]", "base64"),
    ({"images": [""]}, "images[0]", "base64"),
    ({"images": [{"weight": 1}]}, "images[0]", '"image"'),
    ({"images": [{"image": "aa", "scale": 2}]}, "images[0]", '"image"'),
    ({"images": [{"image": "aa", "weight": 9}]}, "images[0].weight", "a number"),
    ({"images": ["aa"] * 65}, "images", "1 to 64"),
    (
        {"images": [{"image": "a", "weight": 1}, {"image": "b", "weight": -1}], "combine": "average"},
        "images",
        "sum",
    ),
    ({"wieght": 1}, "wieght", "one of the fields"),
]


@pytest.mark.parametrize(("fields", "field", "expected"), BAD, ids=[str(b[0])[:40] for b in BAD])
def test_a_bad_value_names_field_value_and_expectation(fields, field, expected):
    with pytest.raises(UnitError) as caught:
        Unit.parse({**GOOD, **fields})
    assert caught.value.detail["field"] == field
    assert expected in caught.value.detail["expected"]
    assert "value" in caught.value.detail
    assert caught.value.status_code == 422


@pytest.mark.parametrize("value", [None, 3, "unit", ["a"]])
def test_a_unit_that_is_no_object(value):
    with pytest.raises(UnitError, match=r"IP-Adapter unit 2: unit: .*a JSON object"):
        parse_units([GOOD, value])


@given(
    weight=st.floats(-1, 5),
    start=st.floats(0, 0.5),
    end=st.floats(0.5, 1),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_what_changed_round_trips_exactly(weight, start, end, fit):
    unit = Unit.parse({**GOOD, "weight": weight, "start": start, "end": end, "fit": fit})
    again = Unit.parse({**json.loads(json.dumps(unit.changed())), "images": GOOD["images"]})
    assert again == unit


@pytest.mark.parametrize(
    ("alias", "field", "value"), [("crop", "box", "0, 0, 0.5, 1"), ("reference_mask", "focus", "aa")]
)
def test_an_alias_is_its_field(alias, field, value):
    unit = Unit.parse({**GOOD, alias: value})
    assert unit == Unit.parse({**GOOD, field: value})
    assert getattr(unit, field) == value
    assert alias not in unit.changed()
    assert f"Also accepted as {alias}." in schema()["properties"][field]["description"]
    with pytest.raises(UnitError, match=f"^{alias}: got .*only one of {field} and {alias}"):
        Unit.parse({**GOOD, field: value, alias: value})


def test_a_bad_value_of_an_alias_is_refused_as_the_fields():
    with pytest.raises(UnitError, match=r"^box: got 'x'"):
        Unit.parse({**GOOD, "crop": "x"})


def test_a_misspelt_field_is_answered_with_the_nearest():
    with pytest.raises(UnitError, match=r"did you mean weight\?\)"):
        Unit.parse({**GOOD, "wieght": 1})


@pytest.mark.parametrize(("given", "meant"), [(True, "yes"), (False, "no"), ("only", "only"), ("yes", "yes")])
def test_a_switch_that_became_a_choice_is_still_read(given, meant):
    assert Unit.parse({**GOOD, "in_detailer": given}).in_detailer == meant


@pytest.mark.parametrize("given", [1, 0, "True", None])
def test_what_was_no_switch_is_no_choice(given):
    with pytest.raises(UnitError, match=r"in_detailer: got .*expected one of yes, no, only"):
        Unit.parse({**GOOD, "in_detailer": given})


def test_the_schema_says_so():
    kind = schema()["properties"]["in_detailer"]
    assert kind["type"] == ["string", "boolean"]
    assert kind["enum"] == ["yes", "no", "only", False, True]
