"""Where a job stands, told by a call stack like the WebUI's."""

from __future__ import annotations

import copy
import json
import weakref
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_ipadapter.attention.region import WHOLE
from lib_ipadapter.errors import RowsError, UnitError
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui import turns
from lib_ipadapter.webui.batch import pictures_of
from lib_ipadapter.webui.following import Following, Place, boxes_of, latent_tiles

Grid = namedtuple("Grid", "tiles tile_w tile_h image_w image_h overlap", module="modules.images")
PROCESSING: dict[str, Any] = {"__name__": "modules.processing"}
SCRIPTS: dict[str, Any] = {"__name__": "modules.scripts"}
exec("def process_images(p, then): return process_images_inner(p, then)", PROCESSING)
exec("def process_images_inner(p, then): return then(p)", PROCESSING)
exec("def run(script, p, script_args): return script.run(p, *script_args)", SCRIPTS)
process_images, run_script = PROCESSING["process_images"], SCRIPTS["run"]


def job(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"width": 64, "height": 48, "image_mask": None, "init_images": [object()], **more})


def script(title: str, run: Any) -> SimpleNamespace:
    return SimpleNamespace(title=lambda: title, run=run)


@pytest.fixture
def place():
    following = Following()
    return lambda p, run=None: following.place(p, lambda p: run)


def switched(place: Place) -> tuple[bool, bool, bool]:
    return place.detailer, place.upscale, place.loopback


def test_a_job_of_its_own(place):
    p = job()
    found = process_images(p, place)
    assert found == place(p) == Place(size=(64, 48))
    assert found.lets(Unit(in_detailer="no", in_upscale=False, in_loopback=False))


def test_a_job_inside_a_job(place):
    outer, inner = job(batch_index=1), job()
    found = process_images(outer, lambda p: process_images(inner, place))
    assert switched(found) == (True, False, False)
    assert found.around is outer
    assert not found.lets(Unit(in_detailer="no"))
    assert found.lets(Unit(in_upscale=False, in_loopback=False))
    assert place(job(_ad_inner=True)).detailer


def test_details_only(place):
    only = Unit(in_detailer="only")
    assert not place(job()).lets(only)
    inner = process_images(job(), lambda p: process_images(job(), place))
    assert inner.lets(only)


def test_the_details_of_each_picture_are_counted(place):
    """By the Run of the job around; without one, which of them it is is not known."""

    class Outer:
        boxes = ((0.0, 0.0, 1.0, 1.0),)
        place = Place(size=(64, 48))
        count = -1

        def next_detail(self):
            self.count += 1
            return self.count

    run = Outer()
    found = [process_images(job(), lambda p: process_images(job(), lambda p: place(p, run))) for _ in range(3)]
    assert [one.detail for one in found] == [0, 1, 2]
    assert process_images(job(), lambda p: process_images(job(), place)).detail is None
    assert place(job(), run).detail is None


def test_a_copy_that_is_only_rehearsed_is_no_job(place):
    """ADetailer calls the scripts' process with a copy of the job that is under way."""
    assert switched(process_images(job(), lambda p: place(job()))) == (False, False, False)


def test_after_an_exception_nothing_is_under_way(place):
    def fail(p: Any) -> None:
        place(p)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        process_images(job(), fail)
    assert not process_images(job(), place).detailer


def test_a_job_inside_a_job_shows_a_part_of_what_that_shows(place):
    tiles = SimpleNamespace(
        boxes=((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)), place=Place(size=(200, 100)), next_detail=lambda: 3
    )
    inner = job(
        inpaint_full_res=True,
        paste_to=(10, 0, 20, 40),
        image_mask=SimpleNamespace(size=(40, 40), width=40, height=40),
    )
    found = process_images(job(batch_index=1), lambda p: process_images(inner, lambda p: place(p, tiles)))
    assert (found.size, found.detail) == ((200, 100), 3)
    assert boxes_of(inner, found.boxes) == ((0.625, 0.0, 0.875, 1.0),)


@pytest.mark.parametrize("title", ["Loopback", "Loopback Scaler", "img2img loopback"])
def test_a_pass_of_loopback_after_the_first(place, title):
    def passes(p: Any, *args: Any) -> list[bool]:
        first, seen = p.init_images, []
        for images in (first, [object()], [object()], first, [object()]):
            p.init_images = images
            seen.append(process_images(p, place).loopback)
        return seen

    p = job()
    for loops in (4, 5):  # a folder's second picture begins anew
        p.init_images = [object()]
        assert run_script(script(title, passes), p, (loops,)) == [False, True, True, False, True]
    assert not process_images(p, place).loopback


def test_the_passes_of_another_script_are_no_loopback(place):
    def passes(p: Any) -> list[Place]:
        found = [process_images(p, place)]
        p.init_images = [object()]
        return [*found, process_images(p, place)]

    assert [switched(found) for found in run_script(script("X/Y/Z plot", passes), job(), ())] == [(False,) * 3] * 2


def grid() -> Grid:
    """100 x 80 in two columns and two rows of 60 x 50."""
    return Grid([[y, 50, [[x, 60, object()] for x in (0, 40)]] for y in (0, 30)], 60, 50, 100, 80, 20)


def test_a_batch_of_tiles(place):
    def upscale(p: Any) -> Place:
        held = grid()
        p.init_images = [held.tiles[0][2][1][2], held.tiles[1][2][0][2]]
        return process_images(p, place)

    found = run_script(script("SD upscale", upscale), job(), ())
    assert switched(found) == (False, True, False)
    assert found.boxes == ((0.4, 0, 1, 0.625), (0, 0.375, 0.6, 1))
    assert found.known
    assert found.size == (100, 80)


def test_tiles_that_no_grid_holds(place):
    def upscale(p: Any) -> Place:
        held = grid()  # noqa: F841
        return process_images(p, place)

    found = run_script(script("Some upscaler", upscale), job(), ())
    assert (found.boxes, found.known, found.size) == ((WHOLE,), False, (64, 48))
    cut = job(
        inpaint_full_res=True,
        paste_to=(10, 0, 20, 40),
        image_mask=SimpleNamespace(size=(40, 40), width=40, height=40),
    )
    found = run_script(script("Ultimate SD upscale", upscale), cut, ())
    assert (found.boxes, found.known, found.size) == ((WHOLE,), True, (40, 40))


def step(cond: int, uncond: int, rows: int) -> SimpleNamespace:
    """CFGDenoiserParams, as far as rows go."""
    return SimpleNamespace(text_cond=torch.zeros(cond), text_uncond=torch.zeros(uncond), x=torch.zeros(rows))


def test_rows_of_a_batch():
    def of(counts: list[int], *sizes: int, needed: bool = True) -> list[int]:
        batch = SimpleNamespace(batch=[[None] * count for count in counts])
        return pictures_of(SimpleNamespace(get_conds=lambda: (batch, None)), step(*sizes), needed)

    assert of([1, 1], 2, 2, 4) == [0, 1, 0, 1]
    assert of([2, 2], 4, 2, 6) == [0, 0, 1, 1, 0, 1]  # AND
    assert of([2, 1], 3, 2, 5) == [0, 0, 1, 0, 1]  # in one of the prompts
    assert of([1, 1], 2, 2, 6) == [0, 1, 0, 1, 0, 1]  # an edit model
    assert of([3], 3, 1, 4) == [0] * 4
    for counts, sizes in (([1, 1], (3, 2, 5)), ([1, 1, 1], (3, 2, 5))):
        with pytest.raises(RowsError, match="another extension rearranges the prompts"):
            of(counts, *sizes)
        assert of(counts, *sizes, needed=False) == []


def test_tiles_of_latents():
    box = SimpleNamespace(x=4, y=2, w=8, h=4)
    assert latent_tiles((8, 16), (4, 8)) == ()

    tiled: dict[str, Any] = {"__name__": "tile_methods.multidiffusion", "latent_tiles": latent_tiles}
    exec("def several(bboxes): bbox = None; return latent_tiles((8, 16), (4, 8))", tiled)
    exec("def one(bbox): return latent_tiles((8, 16), (4, 8))", tiled)
    several, one = tiled["several"], tiled["one"]
    assert one(box) == ((0.25, 0.25, 0.75, 0.75),)
    assert several([box, box]) == one(box) * 2
    assert several([SimpleNamespace(x=0, y=0, w=16, h=8)]) == ()  # of another size
    assert several([(0, 0)]) == several("text") == several([]) == ()


def test_variables_that_only_look_like_tiles_are_none(place):
    """Anybody may have a variable of that name, and a class called Grid."""

    def elsewhere(bboxes: Any) -> Any:
        bbox = bboxes[0]  # noqa: F841
        return latent_tiles((8, 16), (4, 8))

    assert elsewhere([SimpleNamespace(x=4, y=2, w=8, h=4)]) == ()
    foreign = namedtuple("Grid", "tiles")

    def upscale(p: Any) -> Place:
        held = foreign(object())  # its tiles are none of ours; reading them would raise
        return process_images(p, place) if held else place(p)

    assert not run_script(script("Some upscaler", upscale), job(), ()).known

    def outside(p: Any) -> Place:
        held = grid()
        p.init_images = [held.tiles[0][2][0][2]]
        return run_script(script("Some upscaler", lambda p: process_images(p, place)), p, ())

    assert not outside(job()).known  # a grid of who called the WebUI is not the script's


def test_looking_keeps_nothing_alive(place):
    """Up to Python 3.12 a frame keeps what its locals were when somebody looked at them."""

    class Large:
        pass

    def upscale(p: Any) -> bool:
        large = Large()
        kept = weakref.ref(large)
        process_images(p, place)
        del large
        return kept() is None

    assert run_script(script("Some upscaler", upscale), job(), ())


def test_a_function_that_uses_its_locals_keeps_them(place):
    def upscale(p: Any) -> dict[str, Any]:
        mine = 1
        every = locals()
        process_images(p, place)
        return every

    assert run_script(script("Some upscaler", upscale), job(), ())["mine"] == 1


def test_a_batch_tab_that_does_not_say_which_file(place):
    batch: dict[str, Any] = {"__name__": "modules.img2img"}
    exec("def process_batch(p, then, **names):\n    i = names.get('i')\n    return then(p)", batch)
    p = SimpleNamespace(txt2img_upscale=False, batch_size=1, n_iter=1, all_prompts=[""])
    assert batch["process_batch"](p, turns.places, i=3) == [3]
    with pytest.raises(UnitError, match="does not say which file"):
        batch["process_batch"](p, turns.places)


def test_a_prompt_that_is_added_later_has_an_infotext():
    """Extensions make more prompts of one after our process: their pictures take references in turn all the same."""
    text = turns.TextByPicture(lambda k: f"reference {k % 2}")
    p = SimpleNamespace(iteration=1, batch_size=3, prompts=["a", "b", "c"])
    assert [text(p, i, p.prompts, False) for i in range(3)] == ["reference 1", "reference 0", "reference 1"]


def test_the_text_by_picture_is_that_of_the_first_where_parameters_are_written_as_json():
    """As Forge classic does; a function ended its job."""
    text = turns.TextByPicture(lambda k: f"reference {k}")
    assert json.loads(json.dumps({"IP-Adapter": text})) == {"IP-Adapter": "reference 0"}
    job = SimpleNamespace(iteration=1, batch_size=2, prompts=["a", "b"])
    assert copy.deepcopy(text)(p=job, index=1, all_prompts=job.prompts, use_main_prompt=False) == "reference 3"
