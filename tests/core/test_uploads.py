"""Script arguments of the panel: what copies or pickles them gets the same pictures."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from pathlib import Path

import pytest
from PIL import Image

from lib_ipadapter.pictures.images import load
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui.panel.values import slots, units_from_panel

gr = pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 6), (200, 30, 90)).save(path)
    return path


def arguments(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """One unit's arguments as gradio makes them of what the page sends."""
    from lib_ipadapter.webui.panel.files import Files

    component = Files(file_count="multiple", file_types=["image"])
    temporary = tmp_path / "gradio"
    temporary.mkdir()
    component.DEFAULT_TEMP_DIR = str(temporary)
    sent = [{"name": str(path), "orig_name": path.name, "size": 1, "is_file": True, "data": None}]
    files = component.preprocess(sent)
    by_name = {"enabled": True, "model": "x", "images": files}
    return [by_name.get(name) for name in slots()]


def image_of(arguments: list[object]) -> Image.Image:
    (given,) = units_from_panel(arguments)
    return load(Unit.parse(given).images[0].image)


def test_arguments_are_copied_and_pickled(picture, monkeypatch, tmp_path):
    given = arguments(picture, monkeypatch, tmp_path)
    for again in (given, copy.copy(given), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert image_of(again).getpixel((0, 0)) == (200, 30, 90)


def test_a_pickled_argument_survives_its_file(picture, monkeypatch, tmp_path):
    kept = pickle.dumps(arguments(picture, monkeypatch, tmp_path))
    for path in (tmp_path / "gradio").rglob("*"):
        path.unlink() if path.is_file() else None
    picture.unlink()
    assert image_of(pickle.loads(kept)).size == (8, 6)
    assert image_of(pickle.loads(pickle.dumps(pickle.loads(kept)))).size == (8, 6)


def test_no_file_stays_open_or_behind(picture, monkeypatch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        arguments(picture, monkeypatch, tmp_path)
        gc.collect()
    assert [path.name for path in (tmp_path / "gradio").rglob("*") if path.is_file() and not path.stat().st_size] == []


def test_the_page_sees_gradios_own_component():
    from lib_ipadapter.webui.panel.files import Files

    assert Files().get_config()["name"] == "file"
