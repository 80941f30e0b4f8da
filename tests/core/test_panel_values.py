"""The panel's values as units."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import pytest
from PIL import Image

from lib_ipadapter.errors import UnitError
from lib_ipadapter.unit import FIELD_NAMES, FIELDS, Unit
from lib_ipadapter.webui.panel import html
from lib_ipadapter.webui.panel.values import (
    MASKS,
    SAVED,
    WEIGHTS,
    parse_weights,
    slots,
    units_from_panel,
)


def values(**changes):
    """One unit's values in the panel's order, on and complete; ``changes`` by field name."""
    base = {field.name: field.default for field in FIELDS} | {WEIGHTS: "", SAVED: [], MASKS: "", "images": None}
    base |= {"enabled": True, "model": "m", **changes}
    return [base[name] for name in slots()]


def file(path="/tmp/x.png"):
    return SimpleNamespace(name=path)


def test_slots_follow_the_field_table():
    assert [name for name in slots() if name not in (SAVED, WEIGHTS, MASKS)] == list(FIELD_NAMES)
    assert slots()[slots().index("images") :][1:3] == [SAVED, WEIGHTS]


def test_a_unit_with_files_is_ready_to_be_parsed():
    raw = units_from_panel(values(images=[file("/tmp/a.png"), file()], **{WEIGHTS: "1, 0.5"}, weight=0.25))
    unit = Unit.parse(raw[0])
    assert (unit.weight, unit.model, [ref.weight for ref in unit.images]) == (0.25, "m", [1.0, 0.5])
    assert str(unit.images[0].image).endswith("a.png")


def test_saved_references_come_behind_the_files():
    chosen = {SAVED: ["embeds: a, b", "folder: trip"], WEIGHTS: "1, 0.5, 2"}
    raw = units_from_panel(values(images=[file("/tmp/a.png")], **chosen))
    assert raw[0]["images"][1:] == [{"embeds": "a, b", "weight": 0.5}, {"folder": "trip", "weight": 2}]
    assert units_from_panel(values(**{SAVED: ["embeds: x"]}))[0]["images"] == [{"embeds": "x"}]
    for bad in (["x"], ["image: x"], "/etc/passwd", [3]):
        with pytest.raises(UnitError, match="saved references"):
            units_from_panel(values(**{SAVED: bad}))


def test_units_that_are_off_keep_their_place():
    raw = units_from_panel([*values(enabled=False), *values(images=[file()])])
    assert raw[0] == {"enabled": False}
    assert raw[1]["enabled"] is True


def test_none_is_the_default_and_only_the_first_unit_is_on_by_default():
    nothing = [None] * len(slots())
    nothing[slots().index("model")] = "m"
    raw = units_from_panel(nothing * 2)
    assert raw[0]["enabled"] is True
    assert raw[0]["weight"] == 1.0
    assert raw[1] == {"enabled": False}


def test_a_unit_in_which_nothing_was_chosen_does_not_count():
    """F5: looking into the panel must not stop a generation."""
    assert units_from_panel(values(model="None", fit="pad")) == [{"enabled": False}]
    assert units_from_panel(values(model="", images=[], mask="", negative=None)) == [{"enabled": False}]
    for chosen in ({"weight": 0.5}, {"mask": "data:x"}, {"curve": "0:1"}, {"images": [file()]}, {SAVED: ["folder: a"]}):
        assert units_from_panel(values(**{"model": "None", **chosen}))[0]["enabled"] is True


def test_no_model_and_no_picture_are_errors_of_the_unit_not_of_the_panel():
    raw = units_from_panel(values(model="None", weight=0.5))
    assert raw[0]["model"] == ""
    with pytest.raises(UnitError, match="model"):
        Unit.parse(raw[0])
    with pytest.raises(UnitError, match="at least one reference image"):
        Unit.parse(units_from_panel(values())[0])


def test_a_short_list_is_filled_up():
    assert units_from_panel(values(images=[file()])[:2])[0]["model"] == ""


def test_what_a_request_puts_in_place_of_files_is_no_path():
    raw = units_from_panel(values(images=["/etc/hostname", {"image": "aGk=", "weight": 2}]))
    assert raw[0]["images"] == [{"image": "/etc/hostname"}, {"image": "aGk=", "weight": 2}]
    forged = units_from_panel(values(images=[{"name": "/etc/hostname", "is_file": True}]))
    with pytest.raises(UnitError, match="images"):
        Unit.parse(forged[0])


@pytest.mark.parametrize("text", ["", "  ", None])
def test_empty_weights(text):
    assert parse_weights(text, 2) == [None, None]


@pytest.mark.parametrize("text", ["1, 0.5", "1 0.5", "1;0.5", " 1,0.5, "])
def test_weights(text):
    assert parse_weights(text, 2) == [1.0, 0.5]


@pytest.mark.parametrize("text", ["1", "1, 2, 3", "one, two", "1, x", "0,5, 1"])
def test_wrong_weights_name_the_field_and_the_unit(text):
    with pytest.raises(UnitError) as caught:
        units_from_panel([*values(enabled=False), *values(images=[file(), file()], **{WEIGHTS: text})])
    assert caught.value.detail["field"] == WEIGHTS
    assert caught.value.detail["unit"] == 1
    assert "one per picture" in str(caught.value)


def test_weights_without_pictures_wait_for_them():
    assert units_from_panel(values(**{WEIGHTS: "1, 0.5"}))[0]["images"] == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("", None), (None, None), ("data:image/png;base64,aGk=", "data:image/png;base64,aGk=")],
)
def test_the_mask_editor_gives_a_data_uri_or_nothing(value, wanted):
    unit = units_from_panel(values(mask=value, focus=value))[0]
    assert unit["mask"] == unit["focus"] == wanted


def test_a_mask_that_is_not_seen_does_not_count():
    """The panel shows it for region mask alone."""
    drawn = values(images=[file()], mask="data:image/png;base64,AAAA", region="inpaint")
    assert units_from_panel(drawn)[0]["mask"] is None


def test_a_unit_with_references_and_no_model_says_what_to_do():
    assert "Choose a model" in html.wanting([True, False])
    assert "Choose a model" in html.wanting([None])
    assert "fits the checkpoint" in html.wanting([False, False])
    assert "put one into models/ipadapter" in html.wanting([])


def test_a_mask_is_shown_with_buttons_to_change_and_remove_it():
    empty = html.pad("mask", "")
    assert "ipadapter-paint" in empty
    assert "ipadapter-unpaint" not in empty
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    filled = html.pad("mask", "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    assert "<img" in filled
    assert "ipadapter-unpaint" in filled
    assert "<img" not in html.pad("mask", 'broken" onload="x')
    assert "onload" not in html.pad("mask", 'broken" onload="x')
