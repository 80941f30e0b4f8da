"""Names of saved presets, embeds and folders: plain file names on every system."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_ipadapter.errors import UnitError
from lib_ipadapter.evaluation.items import _keys
from lib_ipadapter.unit.names import checked_name, is_device

DEVICES = ["CON", "con.txt", "aux.x", "Nul.tar.gz", "prn", "com1", "COM9.json", "COM¹", "lpt².x", "LPT³", "COM0",
"CONIN$",
           "conout$.png", "CLOCK$", "con .txt", "aux.", "con.a\nb"]  # fmt: skip
PLAIN = [
    "console",
    "con-0",
    "xcon",
    "com10",
    "comb",
    "auxiliary.x",
    "com",
    "lpt",
    "con,txt",
    "Stil für Köpfe",
]


@pytest.mark.parametrize("name", DEVICES)
def test_devices_of_windows_are_refused(name):
    assert is_device(name)
    with pytest.raises(UnitError, match=r"^preset: got"):
        checked_name("preset", name)


@pytest.mark.parametrize("name", PLAIN)
def test_names_that_only_look_like_devices_are_taken(name):
    assert not is_device(name)
    assert checked_name("preset", name) == name


@pytest.mark.parametrize("name", [
    "x ", "x.", "x. .", ".x", "a\x85b", "\ud800", "x" * 81, "", " ", "a/b", "..", "a:b", "a*", None, 3,
])  # fmt: skip
def test_what_is_no_file_name_is_refused(name):
    with pytest.raises(UnitError, match=r"expected a name of 1 to 80 characters"):
        checked_name("preset", name)


def test_a_name_fits_into_the_bytes_of_a_file_system(tmp_path: Path):
    longest = "é" * 80
    (tmp_path / f"{checked_name('preset', longest)}.safetensors").touch()
    with pytest.raises(UnitError, match="at most 200 bytes"):
        checked_name("preset", "🎨" * 80)


def test_keys_of_the_evaluation_are_no_devices():
    keys = _keys([Path("con.x.png"), Path("a/b.png"), Path("lpt1.png")])
    assert keys == ["_con.x", "a_b", "_lpt1"]
