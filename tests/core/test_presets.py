"""Presets: named units without pictures."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib_ipadapter.errors import FileError, UnitError
from lib_ipadapter.unit import FIELDS
from lib_ipadapter.unit.presets import KEPT, Presets
from lib_ipadapter.webui.panel.values import MASKS, SAVED, WEIGHTS, slots
from lib_ipadapter.webui.request import requested_units


@pytest.fixture
def presets(tmp_path):
    return Presets(tmp_path / "presets")


def test_a_preset_comes_back(presets):
    assert presets.names() == []
    unit = {"model": "plus", "weight": 0.5, "layers": {"3": 1}, "fit": "crop", "images": ["aGk="], "mask": "aGk=",
            "enabled": False}  # fmt: skip
    assert presets.save("Stil für Köpfe", unit) == {"model": "plus", "weight": 0.5, "layers": "3:1"}
    presets.save("another", {"weight": 2})
    assert presets.names() == ["another", "Stil für Köpfe"]
    assert presets.load("Stil für Köpfe") == {"model": "plus", "weight": 0.5, "layers": "3:1"}
    presets.remove("another")
    assert presets.names() == ["Stil für Köpfe"]
    assert [path.name for path in presets.folder.iterdir()] == ["Stil für Köpfe.json"]


def test_a_preset_that_an_editor_saved_with_a_mark(presets):
    """Windows' Notepad, for one."""
    presets.folder.mkdir()
    (presets.folder / "edited.json").write_text('{"weight": 0.5}', encoding="utf-8-sig")
    (presets.folder / "folder.json").mkdir()
    assert presets.names() == ["edited"]
    assert presets.load("edited") == {"weight": 0.5}


def test_given_fields_win_over_the_presets(presets):
    presets.save("p", {"model": "plus", "weight": 0.5, "end": 0.4})
    unit = presets.over({"preset": "p", "weight": 0.9, "images": ["x"]})
    assert unit == {"model": "plus", "weight": 0.9, "end": 0.4, "images": ["x"]}
    assert presets.over({"preset": "", "weight": 1}) == {"weight": 1}
    assert presets.over({"weight": 1}) == {"weight": 1}


@pytest.mark.parametrize("name", [
    "", " ", "../up", "a/b", "a\\b", "..", ".hidden", "a" * 81, "a\0b", "a\nb", "CON", "com1", "x ", "x.", "a:b", None,
    3,
    ["a"],
])  # fmt: skip
def test_names_that_are_no_file_names_are_refused(presets, name):
    for act in (
        lambda: presets.save(name, {"weight": 2}),
        lambda: presets.load(name),
        lambda: presets.remove(name),
    ):
        with pytest.raises(UnitError, match=r"^preset: (got|type a name)"):
            act()
    assert not presets.folder.exists() or not list(presets.folder.iterdir())


@pytest.mark.parametrize("name", [[], {}, 0, False, 0.0])
def test_a_name_that_is_none_is_not_taken_for_no_preset(presets, name):
    with pytest.raises(UnitError, match=r"preset: got .*, expected a name"):
        presets.over({"preset": name})


@pytest.mark.parametrize("name", [None, ""])
def test_no_preset(presets, name):
    assert presets.over({"preset": name, "weight": 0.5}) == {"weight": 0.5}


def test_bad_units_are_not_saved(presets):
    for unit, field in (({"weight": 9}, "weight"), ({"wieght": 1}, "wieght"), ({"layers": "x"}, "layers")):
        with pytest.raises(UnitError, match=f"^{field}: got"):
            presets.save("p", unit)
    assert presets.names() == []


def test_an_unknown_preset_names_those_that_are_there(presets):
    presets.save("known", {"weight": 2})
    with pytest.raises(UnitError, match="the name of a preset: known"):
        presets.load("unknown")


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"weight": 99}', '{"preset": "p"}', "\xff", "[" * 9000])
def test_a_broken_file_is_told_by_its_name(presets, text):
    presets.folder.mkdir()
    (presets.folder / "p.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=r"^p\.json: the preset"):
        presets.load("p")


def test_a_failed_write_keeps_the_old_preset(presets, monkeypatch):
    presets.save("p", {"weight": 2})
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(FileError, match="No space left"):
        presets.save("p", {"weight": 3})
    assert json.loads((presets.folder / "p.json").read_text()) == {"weight": 2}
    assert len(list(presets.folder.iterdir())) == 1


def test_every_field_but_the_pictures_is_kept():
    assert {"model", "weight", "weight_type", "curve", "region"} <= set(KEPT)
    assert not {"images", "mask", "enabled"} & set(KEPT)


def test_many_threads_save_one_preset(presets):
    """A23: names of temporary files by process id only made 52 of 800 fail."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: presets.save("one", {"weight": i % 5}), range(400)))
    assert [path.name for path in presets.folder.iterdir()] == ["one.json"]
    presets.load("one")


def test_a_preset_that_cannot_be_deleted_is_named(presets, monkeypatch):
    presets.save("open", {"weight": 2})
    monkeypatch.setattr(
        type(presets.folder), "unlink", lambda path: (_ for _ in ()).throw(PermissionError(13, "in use"))
    )
    with pytest.raises(FileError, match=r"open\.json: cannot be deleted: in use"):
        presets.remove("open")


def test_an_alias_wins_over_the_presets_field(presets):
    presets.save("p", {"model": "plus", "crop": "0, 0, 0.5, 1", "reference_mask": "aGk="})
    assert presets.load("p") == {"model": "plus", "box": "0, 0, 0.5, 1"}
    assert presets.over({"preset": "p", "crop": "0, 0, 1, 0.5"}) == {"model": "plus", "box": "0, 0, 1, 0.5"}
    with pytest.raises(UnitError, match="only one of box and crop"):
        presets.over({"crop": "0, 0, 1, 0.5", "box": ""})


def test_an_alias_in_a_request_wins_over_what_the_infotext_filled_in(presets):
    defaults = {field.name: field.default for field in FIELDS} | {WEIGHTS: "", SAVED: [], MASKS: "", "images": None}
    panel = [{**defaults, "model": "plus", "box": "0, 0, 0.5, 1"}[name] for name in slots()]
    (unit,) = requested_units([[{"crop": "0, 0, 1, 0.5", "images": ["x"]}], *panel], presets.over)
    assert unit["box"] == "0, 0, 1, 0.5"
    assert "crop" not in unit


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("in_list", [True, False])
def test_a_unit_behind_the_flag_has_the_panels_values_behind_it(flag, in_list):
    """As hosts give them to a script: a request's arguments over the panel's defaults."""
    defaults = {field.name: field.default for field in FIELDS} | {WEIGHTS: "", SAVED: [], MASKS: "", "images": None}
    panel = [defaults[name] for name in slots()]
    unit = {"model": "plus", "images": ["x"]}
    alone = requested_units([unit, *panel])
    assert requested_units([flag, [unit] if in_list else unit, *panel[1:]]) == alone
    assert requested_units([flag, unit, unit, *panel[2:]]) == [unit, unit]
