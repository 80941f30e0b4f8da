"""Maps as pictures, and the sheets of a job."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.attention.heatmaps import sheet as heat
from lib_ipadapter.attention.heatmaps.recorder import COLUMNS, Maps, Step
from lib_ipadapter.attention.heatmaps.sheet import colours, figures, heated, plain_font, sheet, spread
from lib_ipadapter.attention.session import Session
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui import maps as job
from tests.tiny import UNet, prompt
from tests.watched import watched


def columns(references: int = 1, size: tuple[int, int] = (8, 8), **given: object) -> Maps:
    values = np.linspace(0, 0.5, size[1], dtype=np.float32)[None, None].repeat(size[0], 1)
    return Maps({**{name: values.repeat(references, 0) for name in COLUMNS}, **given})


def test_colours_begin_black_and_grow_brighter():
    ramp = colours(np.linspace(0, 1, 101, dtype=np.float32))
    assert ramp[0].tolist() == [0, 0, 0]
    brightness = ramp @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0).all()
    assert np.array_equal(colours(np.array([-1.0, 2.0], np.float32)), ramp[[0, -1]])


def test_a_box_lies_where_it_is():
    values = np.ones((4, 4), np.float32)
    assert np.array_equal(spread(values, (40, 20)), np.ones((20, 40)))
    part = spread(values, (40, 20), (0.25, 0.5, 0.75, 1.0))
    assert part[10:, 10:30].min() == 1
    assert part.sum() == 10 * 20
    beyond = spread(values, (40, 20), (-0.25, -0.5, 0.5, 0.5))
    assert beyond[:10, :20].min() == 1
    assert beyond.sum() == 10 * 20


def test_without_heat_the_picture_is_grey():
    picture = Image.effect_noise((32, 32), 100).convert("RGB")
    cold = np.asarray(heated(picture, np.zeros((32, 32), np.float32)))
    assert (cold[..., 0] == cold[..., 2]).all()
    warm = np.asarray(heated(picture, np.full((32, 32), 0.6, np.float32))).astype(int)
    assert (warm[..., 0] - warm[..., 2] > 50).all()


@pytest.mark.parametrize("size", [(64, 64), (512, 768), (40, 700)], ids=str)
def test_a_sheet_has_a_cell_for_each_reference_and_column(size):
    maps = columns(2, late=None)
    made = np.asarray(sheet(Image.new("RGB", size, "white"), maps, "title", ["one", "two"])).astype(int)
    seen = np.zeros(made.shape[:2], int)
    for column in COLUMNS:
        for row in range(2):
            x, y, width, height = heat.place(size, column, row)
            seen[y : y + height, x : x + width] += 1
            cell = made[y : y + height, x : x + width]
            assert cell.shape[:2] == (height, width), "inside the sheet"
            right = cell[height // 2, -1]
            if column == "late":
                assert (right == heat._BACK).all()
                continue
            assert right[0] > right[2] + 20  # the largest value is yellow
            assert cell[height // 2, 0].max() - cell[height // 2, 0].min() < 20  # the smallest is grey
    assert seen.max() == 1, "no two maps overlap"
    large, small = heat.place(size, "all", 0), heat.place(size, "in", 0)
    assert large[2] == 2 * small[2]


def test_the_colours_reach_from_the_smallest_to_the_largest_value():
    """Values between 0.45 and 0.59 were one pale yellow (F24)."""
    values = np.linspace(0.45, 0.59, 64, dtype=np.float32).reshape(1, 8, 8)
    made = np.asarray(sheet(Image.new("RGB", (64, 64)), Maps(dict.fromkeys(COLUMNS, values)), "", ["one"])).astype(int)
    x, y, width, height = heat.place((64, 64), "all", 0)
    cell = made[y : y + height, x : x + width]
    assert cell[0, 0].max() < 20
    assert cell[-1, -1].max() > 140


def test_all_zero_can_be_drawn():
    zeros = np.zeros((1, 4, 4), np.float32)
    made = sheet(Image.new("RGB", (64, 64)), Maps(dict.fromkeys(COLUMNS, zeros)), "", ["one"])
    assert made.height > 64


def test_figures():
    means = {"in": np.array([0.25, 0.5], np.float32), "mid": None, "out": np.zeros(2, np.float32)}
    found = figures(Maps(columns(2, late=None).columns, (Step(0.0, means), Step(1 / 3, means))))
    assert found[1]["all"] == {"mean": 0.25, "max": 0.5}
    assert found[0]["late"] is None
    assert found[1]["steps"][0] == {"fraction": 0, "in": 0.5, "mid": None, "out": 0}
    assert [step["fraction"] for step in found[0]["steps"]] == [0, 0.33333]
    assert json.loads(json.dumps(found)) == found


class Host:
    font = staticmethod(plain_font)

    def pastes_inpainted(self) -> bool:
        return True

    def writes_infotext(self) -> bool:
        return True


def drawn(pictures: int, grid: bool = False, more: int = 0) -> SimpleNamespace:
    images = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(grid + pictures)]
    texts = ["grid"] * grid + [f"text {i}" for i in range(pictures)]
    images += [Image.new("RGB", (9, 9))] * more  # of another script, without texts
    return SimpleNamespace(images=images, infotexts=texts, index_of_first_image=int(grid), comments="")


def sheets_of(*units: tuple[Unit, int]) -> tuple[job.Sheets, Session]:
    unet = UNet()
    prompts = [prompt(unet, i, maps=maps, weight=unit.weight) for i, (unit, maps) in enumerate(units)]
    session = watched(prompts)
    return job.Sheets(session, [(i, unit, prompts[i]) for i, (unit, _) in enumerate(units)]), session


UNIT = Unit.parse({"model": "m", "images": ["a"], "maps": True})


@pytest.mark.parametrize(("grid", "more"), [(False, 0), (True, 0), (True, 2)])
def test_sheets_stand_behind_the_pictures_with_their_texts(grid, more):
    off, zero = Unit.parse({"model": "m", "images": ["a"]}), Unit.parse({**vars(UNIT), "weight": 0})
    sheets, session = sheets_of((off, 0), (UNIT, 1), (zero, 1))
    session.observer.maps = lambda place: [columns(), columns()] if place == 1 else []
    processed = drawn(4, grid, more)
    for iteration in range(2):
        sheets.begin()
        sheets.end(iteration)
        for index in range(2):
            sheets.picture(iteration, index, processed.images[grid + 2 * iteration + index])
    before = list(processed.images)
    sheets.append_to(processed, None, Host())
    assert processed.images[: len(before)] == before
    added = processed.images[len(before) :]
    assert len(added) == 4
    assert len(processed.infotexts) == len(processed.images)
    assert processed.infotexts[-4:] == [f"text {i}" for i in range(4)]
    assert [image.info["parameters"] for image in added] == [f"text {i}" for i in range(4)]
    said = [json.loads(image.info[job.TEXT]) for image in added]
    assert [(entry["unit"], entry["picture"]) for entry in said] == [(1, i) for i in range(4)]
    assert not processed.comments


def test_an_error_is_reported_and_the_pictures_stay(monkeypatch):
    messages = []
    monkeypatch.setattr(job.logger, "exception", messages.append)
    sheets, session = sheets_of((UNIT, 1))
    session.observer.maps = lambda place: [Maps(dict.fromkeys(COLUMNS))]
    processed = drawn(1)
    sheets.end(0)
    sheets.picture(0, 0, processed.images[0])
    sheets.append_to(processed, None, Host())
    assert len(processed.images) == 1
    assert "could not show" in processed.comments
    assert "no maps" in messages[0]


def test_what_was_left_out_is_said():
    sheets, session = sheets_of((UNIT, 1))
    session.observer.left_out = 1
    processed = drawn(1)
    sheets.end(0)
    sheets.append_to(processed, None, Host())
    assert "missing from the maps" in processed.comments
    assert len(processed.images) == 1


def test_a_scripts_job_is_not_shown():
    comments: list[str] = []
    for first, shown in ((0, True), (None, True), (3, False)):
        p = SimpleNamespace(script_args=(first, "x"), comment=comments.append)
        assert job.shown_in(p, [UNIT])[0].maps is shown
    assert len(comments) == 1
    assert job.shown_in(SimpleNamespace(), [UNIT]) == [UNIT]
