"""The infotext's value and back, through the WebUI's own quoting."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_ipadapter.unit import FIELDS, Unit
from lib_ipadapter.unit.face import CHOICES
from lib_ipadapter.webui import infotext
from lib_ipadapter.webui.infotext import Hashes

WEBUI = Path(os.environ.get("WEBUI_DIR", Path.home() / "stable-diffusion-webui"))
# modules/infotext_utils.py of v1.10.1; test_the_webuis_own_parser keeps these two honest.
RE_PARAM = r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'


def quoted(text: str) -> str:
    plain = "," not in text and "\n" not in text and ":" not in text
    return text if plain else json.dumps(text, ensure_ascii=False)


def through_the_webui(value: str) -> str:
    """The value after a line of infotext was written and read as the WebUI does it."""
    line = f"Steps: 20, Sampler: Euler a, {infotext.KEY}: {quoted(value)}, Size: 512x512, Version: v1.10.1"
    found = dict(re.findall(RE_PARAM, line))
    assert found["Version"] == "v1.10.1"
    text = found[infotext.KEY]
    return json.loads(text) if text.startswith('"') else text


def unit(**fields) -> Unit:
    return Unit.parse({"model": "ip-adapter_sd15", "images": ["aGk="], **fields})


def test_only_changed_fields_are_written_and_pictures_as_hashes():
    value = infotext.to_infotext([unit(weight=0.75, fit="pad")], [Hashes(["0123456789abcdef"])])
    assert json.loads(value) == [
        {"model": "ip-adapter_sd15", "weight": 0.75, "fit": "pad", "images": ["0123456789abcdef"]}
    ]


def test_units_that_are_off_are_left_out_and_places_survive():
    off = Unit.parse({"enabled": False})
    value = infotext.to_infotext(
        [off, unit(), off, unit(weight=-0.5)], [Hashes(), Hashes(["a"]), Hashes(), Hashes(["b"])]
    )
    assert [entry["unit"] for entry in json.loads(value)] == [2, 4]
    assert [*infotext.read(value).units] == [1, 3]
    assert "unit" not in json.loads(infotext.to_infotext([unit(), unit()], [Hashes(["a"]), Hashes(["b"])]))[1]


def test_weights_of_pictures():
    two = unit(images=[{"image": "aGk=", "weight": 0.5}, "aGk="])
    entry = infotext.read(infotext.to_infotext([two], [Hashes(["a", "b"])])).units[0]
    assert entry["images"] == [{"hash": "a", "weight": 0.5}, {"hash": "b", "weight": 1.0}]
    assert infotext.weights_text(entry["images"]) == "0.5, 1"
    assert infotext.weights_text([{"hash": "a", "weight": 1.0}]) == ""


def test_what_is_named_comes_back_whole():
    named = unit(images=[{"embeds": "a, b", "weight": 0.5}, "aGk=", {"folder": "trip"}])
    text = infotext.to_infotext([named], [Hashes(["", "c", ""])])
    assert json.loads(text)[0]["images"] == [{"embeds": "a, b", "weight": 0.5}, "c", {"folder": "trip"}]
    images = infotext.read(through_the_webui(text)).units[0]["images"]
    assert images == [
        {"embeds": "a, b", "weight": 0.5}, {"hash": "c", "weight": 1.0}, {"folder": "trip", "weight": 1.0}
    ]  # fmt: skip
    assert infotext.named_texts(images) == ["embeds: a, b", "folder: trip"]
    assert infotext.weights_text(images) == "1, 0.5, 1"  # the picture first, as the panel has them


def test_a_hash_is_missing_is_our_mistake_and_said():
    with pytest.raises(ValueError, match="zip"):
        infotext.to_infotext([unit()], [Hashes()])


fraction = st.floats(0, 1)
factor = st.floats(-5, 5)
BY_KIND = {
    "bool": lambda field: st.booleans(),
    "number": lambda field: (
        st.integers(int(field.minimum), int(field.maximum)).map(float)
        if field.name == "zero_tokens"
        else st.floats(field.minimum, field.maximum)
    ),
    "choice": lambda field: st.sampled_from(field.choices),
    "string": lambda field: st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(str.strip),
    "images": lambda field: st.lists(
        st.fixed_dictionaries({"image": st.just("aGk="), "weight": st.floats(-1, 5)}), min_size=1, max_size=4
    ),
    "image": lambda field: st.sampled_from([None, "aGk="]),
}  # fmt: skip
TEXTS = {
    "face": st.sampled_from(CHOICES) | st.integers(0, 999),
    "pose_face": st.sampled_from(["largest", "all", "3"]),
    "region_face": st.sampled_from(CHOICES) | st.integers(0, 999),
    "layers": st.dictionaries(st.integers(0, 15), factor, max_size=6),
    "box": st.just(""),  # whose number depends on that of the pictures
    "curve": st.dictionaries(fraction, factor, max_size=6).map(lambda points: sorted(points.items())),
}


def consistent(values):
    """What contradicts itself is another test's."""
    values["negative"] = [picture["image"] for picture in values["negative"]]
    values["start"], values["end"] = sorted((values["start"], values["end"]))
    values["pose"] = [picture["image"] for picture in values["pose"][:1]]
    values["pose_start"], values["pose_end"] = sorted((values["pose_start"], values["pose_end"]))
    values["pose_from"] = "reference" if values["pose"] else values["pose_from"]
    if values["layers"]:
        values["weight_type"] = "linear"
    if values["mask"]:
        values["region"] = "mask"
    values["invert"] = values["invert"] and bool(values["mask"] or values["region"] != "mask")
    return {**values, "enabled": True, "combine": "concat"}


def others(one):
    """Hashes of a unit's other pictures."""
    names = {"negative": ["f" * 16] * len(one.negative), "focus": "f" * 16, "mask": "f" * 16, "pose": "f" * 16}
    return {name: value for name, value in names.items() if getattr(one, name)}


units = st.fixed_dictionaries({f.name: TEXTS[f.name] if f.name in TEXTS else BY_KIND[f.kind](f) for f in FIELDS}).map(
    consistent
)


@given(st.lists(units, min_size=1, max_size=4))
def test_every_field_round_trips_exactly(raw):
    made = [Unit.parse(entry) for entry in raw]
    hashes = [Hashes([f"{i:016x}" for i in range(len(one.images))], others(one)) for one in made]
    pasted = infotext.read(through_the_webui(infotext.to_infotext(made, hashes)))
    assert len(pasted.notes) == sum(len(named.others) for named in hashes)
    assert all("f" * 16 in note for note in pasted.notes)
    for index, one in enumerate(made):
        entry = dict(pasted.units[index])
        images = entry.pop("images")
        assert entry == one.changed()
        assert [image["hash"] for image in images] == hashes[index].images
        assert [image["weight"] for image in images] == [ref.weight for ref in one.images]


BROKEN = ["", "x", "[", "{}", "7", "null", '"text"', "[1]", "[[]]", "[null]", "True", "[" * 5000, None, 5]


@pytest.mark.parametrize("value", BROKEN)
def test_a_foreign_value_is_ignored_with_a_note(value):
    pasted = infotext.read(value)
    assert pasted.units == {}
    assert len(pasted.notes) == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"weight": 9}, {"weight": "1"}, {"weight": True}, {"fit": "squash"}, {"from the future": 1},
        {"enabled": True}, {"images": [3]}, {"images": [{"weight": 1}]}, {"images": {"hash": 4}},
        {"images": [{"hash": "a", "weight": 99}]},
    ],
)  # fmt: skip
def test_an_unusable_field_is_left_out_and_noted(entry):
    pasted = infotext.read(json.dumps([{"model": "m", "start": 0.25, **entry}]))
    assert pasted.units[0] == {"model": "m", "start": 0.25, "images": []}
    assert len(pasted.notes) == 1
    assert "unit 1" in pasted.notes[0]


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True, 10**9, None])
def test_an_unusable_place_is_noted(number):
    pasted = infotext.read(json.dumps([{"unit": number, "model": "m"}]))
    assert pasted.units == {}
    assert len(pasted.notes) == 1


def test_two_entries_for_one_unit():
    pasted = infotext.read('[{"model": "a"}, {"unit": 1, "model": "b"}]')
    assert pasted.units[0]["model"] == "a"
    assert len(pasted.notes) == 1


@pytest.mark.parametrize(
    ("wanted", "present", "part"),
    [
        ([], ["a"], None),
        (["a"], ["a"], "These are the images"),
        (["a", "b"], ["b", "a"], "in another order"),
        (["a", "b"], ["a"], "made with: b. Other images"),
        (["a"], ["a", "c"], "used 1 image, and here are 2"),
    ],
)
def test_whether_the_pictures_at_hand_are_the_texts(wanted, present, part):
    sentence = infotext.match(wanted, present)
    assert sentence == "" if part is None else part in sentence


def test_the_webuis_own_parser():
    source = WEBUI / "modules" / "infotext_utils.py"
    if not source.is_file():
        pytest.skip(f"no WebUI at {WEBUI}; set WEBUI_DIR")
    text = source.read_text(encoding="utf-8")
    code = re.search(r"^re_param_code = (.*)$", text, re.MULTILINE)
    assert ast.literal_eval(code[1]) == RE_PARAM
    space: dict = {"json": json}
    for name in ("quote", "unquote"):
        exec(re.search(rf"^def {name}\(.*?(?=^def |\Z)", text, re.MULTILINE | re.DOTALL)[0], space)
    for value in ('[{"model": "ä, \\"b\\": c\\\\", "images": []}]', "plain", "a\nb"):
        assert space["quote"](value) == quoted(value)
        assert space["unquote"](quoted(value)) == value
