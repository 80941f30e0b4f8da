"""Text that no encoding can write: JSON may bring half a character, and names of files need not be UTF-8. An answer
that holds it would be a 500, and a list would hide all other names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_ipadapter.controlnet.files import ControlNets
from lib_ipadapter.errors import BrokenControl, FileError, IPAdapterError, UnitError
from lib_ipadapter.files.library import Folder, Library
from lib_ipadapter.prompts.embeds import EmbedsFolder
from lib_ipadapter.prompts.references import PictureFolders
from lib_ipadapter.unit import Unit
from lib_ipadapter.unit.presets import Presets

HALF = "\ud800"
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep names as text")


def answered(error: IPAdapterError) -> str:
    """As the WebUI and our routes answer with it."""
    return json.dumps([str(error), error.detail], ensure_ascii=False).encode().decode()


@pytest.mark.parametrize(
    "fields", [{HALF: 1}, {"model": HALF}, {"box": HALF}, {"images": [{HALF: 1}]}, {"x" * 100_000: 1}]
)
def test_an_error_can_be_written(fields: dict[str, Any]) -> None:
    with pytest.raises(UnitError) as caught:
        Unit.parse({"model": "m", "images": ["aGk="], **fields})
    assert len(answered(caught.value.in_unit(0))) < 6000


def test_an_error_about_a_file_can_be_written() -> None:
    assert "\\ud800.bin" in answered(FileError(f"{HALF}.bin", "no", expected=[HALF]).at(HALF))


@linux
def test_an_adapter_whose_name_is_no_utf8_is_listed_and_found(tmp_path: Path) -> None:
    for name in (b"caf\xe9.safetensors", b"back\\slash.safetensors"):
        save_file({"image_proj.proj.weight": torch.zeros(1)}, os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    library = Library([Folder(tmp_path)])
    library.refresh()
    assert library.names() == ["back\\slash", "caf\ufffd"]
    for name in library.names():
        assert library.find(name).is_file()


@linux
def test_a_controlnet_whose_name_is_no_utf8_can_be_chosen(tmp_path: Path) -> None:
    tensors = {"zero_convs.0.0.weight": torch.zeros(1), "input_hint_block.0.weight": torch.zeros(1)}
    save_file(tensors, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.safetensors"))
    (found,) = ControlNets(lambda: [tmp_path]).all()
    assert found.name == "caf\ufffd"
    with pytest.raises(BrokenControl):  # found, and said what it is
        ControlNets(lambda: [tmp_path]).find("caf\ufffd", 768)


@linux
def test_saved_names_that_are_no_utf8_do_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("good", os.fsdecode(b"caf\xe9")):
        (tmp_path / f"{name}.json").write_text("{}")
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / "good" / "a.png")
    (tmp_path / "good" / os.fsdecode(b"caf\xe9.txt")).write_text("")
    assert Presets(tmp_path).names() == EmbedsFolder(tmp_path).names() == PictureFolders(tmp_path).names() == ["good"]
    assert PictureFolders(tmp_path).others("good") == ["caf\\udce9.txt"]
