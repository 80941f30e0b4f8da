"""Maps of where references acted, beside the real WebUI's pictures."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.attention.heatmaps import sheet as heat
from lib_ipadapter.attention.heatmaps.recorder import COLUMNS

from .harness import WebUI, b64, picture, pixels
from .test_regions import HIRES, half, inpainting

TEXT = "IP-Adapter maps"


@pytest.fixture
def shown(unit: dict) -> dict:
    return {**unit, "maps": True}


class Job:
    """An answer: pictures (grid and masks among them), sheets, what the sheets say, and all texts."""

    def __init__(self, webui: WebUI, *units: Any, **payload: Any) -> None:
        reply = webui.draw(*units, **payload)
        assert reply.status == 200, f"{reply.body[:2000]!r}\n{webui.log[-3000:]}"
        images = reply.json["images"]
        opened = [Image.open(io.BytesIO(base64.b64decode(image))) for image in images]
        self.info = json.loads(reply.json["info"])
        self.texts = self.info["infotexts"]
        self.sheets = [image for image in opened if TEXT in image.info]
        self.said = [json.loads(image.info[TEXT]) for image in self.sheets]
        self.pictures = [pixels(image) for image in images[: len(images) - len(self.sheets)]]
        assert not any(TEXT in image.info for image in opened[: len(self.pictures)])

    def means(self, sheet: int = 0, reference: int = 0) -> dict[str, float]:
        columns = self.said[sheet]["references"][reference]
        return {name: columns[name]["mean"] for name in COLUMNS if columns[name]}


def cell(sheet: Image.Image, size: tuple[int, int], column: int = 0, row: int = 0) -> np.ndarray:
    """The colours [h, w, 3] of one cell of a picture of ``size``."""
    x, y, width, height = heat.place(size, COLUMNS[column], row)
    return np.asarray(sheet)[y : y + height, x : x + width].astype(int)


def warm(colours: np.ndarray) -> np.ndarray:
    """Where there is heat: all else is grey."""
    return np.ptp(colours, axis=2) > 3


def test_a_sheet_beside_the_picture_which_stays_hash_for_hash(on_sd1: WebUI, unit, shown):
    off, on = Job(on_sd1, unit, steps=3), Job(on_sd1, shown, steps=3)  # one for each column of the sheet
    assert on.pictures == off.pictures
    assert off.sheets == []
    assert len(on.sheets) == 1
    assert on.texts == off.texts * 2
    assert "maps" not in on.texts[0]
    assert on.sheets[0].info["parameters"] == on.texts[0]
    same = ("all_seeds", "all_prompts", "seed", "index_of_first_image", "prompt")
    assert {key: on.info[key] for key in same} == {key: off.info[key] for key in same}
    assert (on.said[0]["unit"], on.said[0]["picture"]) == (0, 0)
    assert set(on.means()) == set(COLUMNS)
    assert all(0 < value < 1 for value in on.means().values())
    steps = on.said[0]["references"][0]["steps"]
    fractions = [step["fraction"] for step in steps]
    assert fractions[0] == 0
    assert fractions == sorted(set(fractions))
    assert len(fractions) > 1
    for name in ("in", "mid", "out"):
        assert np.mean([step[name] for step in steps]) == pytest.approx(on.means()[name], abs=1e-4)
    assert warm(cell(on.sheets[0], (64, 64))).any()


def test_the_weight_shows(on_sd1: WebUI, shown):
    weak, strong = (Job(on_sd1, {**shown, "weight": weight}, steps=3).means() for weight in (0.2, 1.0))
    assert all(weak[name] < strong[name] for name in COLUMNS)
    assert Job(on_sd1, {**shown, "weight": 0}).sheets == []
    late = Job(on_sd1, {**shown, "start": 0.6}, steps=3).means()
    assert late["early"] == late["middle"] == 0 < late["late"]


def test_references_and_units(on_sd1: WebUI, shown, unit, reference):
    two = {**shown, "images": [reference, b64(picture(5))]}
    averaged = {**two, "combine": "average"}
    job = Job(on_sd1, unit, two, averaged)
    assert [(said["unit"], len(said["references"])) for said in job.said] == [(1, 2), (2, 1)]
    alone = Job(on_sd1, {**two, "maps": True})
    assert alone.means(0, 0) != alone.means(0, 1)
    # Tokens of one picture twice share evenly.
    twice = Job(on_sd1, {**shown, "images": [reference, reference]})
    assert twice.means(0, 0) == pytest.approx(twice.means(0, 1), rel=1e-3)


def test_every_picture_of_every_batch(on_sd1: WebUI, unit, shown):
    more = {"batch_size": 2, "n_iter": 2, "save_images": True}  # else the API makes no grid
    off, on = Job(on_sd1, unit, **more), Job(on_sd1, shown, **more)
    assert len(off.pictures) == 5  # the grid is first
    assert on.pictures == off.pictures
    assert len(on.sheets) == 4
    assert len(on.texts) == 9
    assert on.texts[:5] == off.texts
    assert on.texts[5:] == off.texts[1:]
    assert on.info["index_of_first_image"] == off.info["index_of_first_image"] == 1
    for place in range(4):
        alone = Job(on_sd1, shown, seed=1 + place)
        assert on.means(place) == pytest.approx(alone.means(), rel=0.02)
    assert on.means(0) != pytest.approx(on.means(1), rel=1e-3)


def test_and_prompts_in_chunks_that_mix_the_rows(on_sd1: WebUI, shown):
    more = {
        "prompt": "a red house AND a blue boat AND a green tree",
        "batch_size": 2,
        "do_not_save_grid": True,
    }
    whole = Job(on_sd1, shown, **more)
    with on_sd1.set(batch_cond_uncond=False):
        split = Job(on_sd1, shown, **more)
    assert len(whole.sheets) == len(split.sheets) == 2
    for place in range(2):
        assert split.means(place) == pytest.approx(whole.means(place), rel=0.02)


def test_hires_fix_shows_the_last_pass(on_sd1: WebUI, unit, shown):
    off, on = Job(on_sd1, unit, **HIRES), Job(on_sd1, shown, **HIRES)
    assert on.pictures == off.pictures
    assert len(on.sheets) == 1
    first = Job(on_sd1, {**shown, "passes": "first"}, **HIRES)
    assert not any(first.means().values())
    assert not warm(cell(first.sheets[0], (128, 128))).any()
    second = Job(on_sd1, {**shown, "passes": "hires"}, **HIRES)
    assert all(value > 0 for value in second.means().values())


# 9 x 25 and 13 x 7 latents, whose halves are rounded up on each level
@pytest.mark.parametrize("size", [(64, 64), (72, 200), (104, 56)], ids=str)
def test_a_regions_map_is_dark_outside(on_sd1: WebUI, shown, size):
    more = {"width": size[0], "height": size[1], "steps": 1}
    job = Job(on_sd1, {**shown, "mask": half(box=(0, 0, 0.25, 1))}, **more)
    inner = [COLUMNS.index(name) for name in ("all", "in", "early")]
    for column in inner:
        hot = warm(cell(job.sheets[0], size, column))
        quarter = hot.shape[1] // 4
        assert hot[:, : quarter // 2].mean() > 0.9
    # The deepest level's tokens stand for 64 x 64 pixels: behind them it is dark.
    if size[0] > 64:
        hot = warm(cell(job.sheets[0], size))
        assert not hot[:, int(hot.shape[1] * 80 / size[0]) :].any()


def test_only_masked_inpainting_is_shown_where_it_is_pasted(on_sd1: WebUI, unit, shown):
    part = inpainting(inpaint_full_res=True, inpaint_full_res_padding=8)
    off, on = Job(on_sd1, unit, **part), Job(on_sd1, shown, **part)
    assert on.pictures == off.pictures
    hot = warm(cell(on.sheets[0], (128, 128)))
    # The mask is the lower middle: x 0.5 to 0.75, y 0.5 to 1, and the part around it a square of some padding.
    side = hot.shape[0]
    assert hot[int(side * 0.55) : int(side * 0.95), int(side * 0.52) : int(side * 0.72)].mean() > 0.9
    assert not hot[: int(side * 0.35)].any()
    assert not hot[:, : int(side * 0.2)].any()
    whole = Job(on_sd1, shown, **inpainting(inpaint_full_res=False))
    assert warm(cell(whole.sheets[0], (128, 128))).mean() > 0.9


def test_masks_among_the_pictures_keep_the_texts_in_line(on_sd1: WebUI, shown):
    with on_sd1.set(return_mask=True):
        job = Job(on_sd1, shown, **inpainting(inpaint_full_res=False))
    assert len(job.pictures) == 2
    assert len(job.sheets) == 1
    assert len(job.texts) == 3


def test_an_interrupted_job_and_an_error(on_sd1: WebUI, shown, unit):
    probe = {"Probe": {"args": ["interrupt"]}}
    job = Job(on_sd1, shown, scripts=probe, n_iter=2)
    assert len(job.pictures) >= 1
    assert len(job.sheets) == 1
    assert on_sd1.draw(shown, scripts={"Probe": {"args": ["raise"]}}).status == 500
    assert Job(on_sd1, shown).pictures == on_sd1.known(unit)


def test_runs_inside_the_run(on_sd1: WebUI, shown, unit):
    """As ADetailer's: the sheet is over the picture as it is returned, and the inner run's is not mixed in."""
    nested = {"Probe": {"args": ["nested:ip_adapter"]}}
    off, on = Job(on_sd1, unit, scripts=nested), Job(on_sd1, shown, scripts=nested)
    assert on.pictures == off.pictures
    assert len(on.sheets) == 1
    assert on.means() == Job(on_sd1, shown).means()


def test_scripts_that_join_pictures_get_no_sheets(on_sd1: WebUI, shown, unit):
    script = {"script_name": "prompt matrix", "prompt": "a house|red",
              "script_args": [False, False, "positive", "comma", 0]}  # fmt: skip
    off, on = Job(on_sd1, unit, **script), Job(on_sd1, shown, **script)
    assert len(off.pictures) == 3
    assert on.pictures == off.pictures
    assert on.sheets == []


def test_nothing_more_is_saved(on_sd1: WebUI, shown):
    def saved() -> int:
        return len(list(on_sd1.data.rglob("*.png")))

    before = saved()
    with on_sd1.set(samples_save=True):
        job = Job(on_sd1, shown, save_images=True)
    assert len(job.sheets) == 1
    assert saved() == before + 1


def test_sdxl(on_sdxl: WebUI, unit, shown):
    more = {"model": "sdxl-base"}
    off, on = Job(on_sdxl, {**unit, **more}), Job(on_sdxl, {**shown, **more})
    assert on.pictures == off.pictures
    assert all(value > 0 for value in on.means().values())


def test_the_schema_has_it_and_other_kinds_are_refused(on_sd1: WebUI, shown):
    found = on_sd1.get("/ip-adapter/schema").json["properties"]["maps"]
    assert (found["type"], found["default"]) == ("boolean", False)
    reply = on_sd1.draw({**shown, "maps": "yes"})
    assert reply.status == 422
    assert reply.json["detail"]["field"] == "maps"
