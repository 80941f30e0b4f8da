"""The small world in the real WebUI: a checkpoint whose text tower open_clip does not know, and the pictures that
Standalone draws with the same files, whose attributes are the references'."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from examples.small_world import data, fine, models
from examples.small_world.drawer import CFG, Drawer
from examples.small_world.read import read

from .harness import WebUI, _link, absent, b64

ADAPTERS = (models.BASE_ADAPTER.name, models.PLUS_ADAPTER.name)
STEPS, SEED = 8, 5
REFERENCES = [data.sample(3, index, unseen=True) for index in range(6)]
# Files that a person may have there, and that must not keep the WebUI from starting.
STRAY = {"broken.json": "{", "notes.json": '{"description": "mine"}', "no-clip.json": '{"embed_dim": 1}'}


class SmallWorld(WebUI):
    """A WebUI that begins with the small world's checkpoint."""

    def __init__(self, weights: Path) -> None:
        super().__init__((models.CHECKPOINT.stem,))
        self.weights = weights

    def checkpoint(self, kind: str) -> Path:
        return self.weights / f"{kind}.safetensors"

    def _prepare(self) -> None:
        super()._prepare()
        folders = {models.CLIP_FILE: "clip_vision", models.CLIP_CONFIG: "clip_vision"}
        for path in (*folders, models.BASE_ADAPTER, models.PLUS_ADAPTER):
            folder = folders.get(path, "ipadapter")
            _link(self.weights / path.name, self.data / "models" / folder / path.name)
        for name, text in STRAY.items():
            (self.data / "models" / "Stable-diffusion" / name).write_text(text)

    def pictures(self, *units: object, **payload: object) -> list[Image.Image]:
        """Drawn as Standalone draws."""
        asked = {
            "prompt": "", "negative_prompt": "", "sampler_name": "DDIM", "steps": STEPS, "cfg_scale": CFG,
            "seed": SEED, "width": data.SIDE, "height": data.SIDE, **payload,
        }  # fmt: skip
        reply = self.draw(*units, **asked)
        assert reply.status == 200, f"{reply.body[:2000]!r}\n{self.log[-3000:]}"
        drawn = (base64.b64decode(picture) for picture in reply.json["images"])
        return [Image.open(io.BytesIO(picture)).convert("RGB") for picture in drawn]


@pytest.fixture(scope="module")
def server() -> Iterator[SmallWorld]:
    if reason := absent():
        pytest.skip(reason)
    with SmallWorld(models.WEIGHTS) as running:
        yield running


@pytest.fixture(scope="module")
def drawers() -> dict[str, Drawer]:
    """Standalone with the same files, by adapter."""
    return {adapter: Drawer(models.WEIGHTS, adapter, STEPS) for adapter in ADAPTERS}


def unit(reference: Image.Image, adapter: str = ADAPTERS[0], **fields: object) -> dict[str, object]:
    return {"model": adapter, "images": [b64(reference)], **fields}


def half_mask(side: int) -> Image.Image:
    """White on the left half (0) or the right (1) of a picture of twice the width."""
    mask = Image.new("RGB", (2 * data.SIDE, data.SIDE))
    mask.paste((255, 255, 255), (side * data.SIDE, 0, (side + 1) * data.SIDE, data.SIDE))
    return mask


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean over all pixels, of 255."""
    return float(abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def test_it_begins_with_a_text_tower_that_open_clip_does_not_know(server: SmallWorld):
    assert f"registered the text tower {models.ARCH}" in server.log
    assert "could not register" not in server.log
    assert "Traceback" not in server.log
    assert server.get("/sdapi/v1/options").json["sd_model_checkpoint"].startswith(models.CHECKPOINT.stem)
    first, second = (server.pictures(prompt=text, steps=2)[0] for text in ("a red star", "a large blue ring"))
    assert np.asarray(first).std() > 5
    assert first.tobytes() != second.tobytes()


def test_without_weight_the_picture_is_the_bases(server: SmallWorld):
    reference = REFERENCES[0].picture
    base, without, prompted = (
        server.pictures(*units, steps=2)[0].tobytes()
        for units in ((), (unit(reference, weight=0),), (unit(reference),))
    )
    assert without == base
    assert prompted != base


@pytest.mark.parametrize("adapter", ["", *ADAPTERS])
def test_the_picture_is_standalones(server: SmallWorld, drawers: dict[str, Drawer], adapter: str):
    """The WebUI leaves out the last of DDIM's steps, at t = 1, where hardly any noise is left."""
    reference, text = REFERENCES[1].picture, "a red star"
    units = [unit(reference, adapter)] if adapter else []
    drawer = drawers[adapter or ADAPTERS[0]]
    ours = drawer.draw(text, [drawer.prompt(reference)] if adapter else [], SEED)
    theirs = server.pictures(*units, prompt=text)[0]
    others = server.pictures(*units, prompt=text, seed=SEED + 1)[0]
    assert difference(ours, theirs) < 3
    assert difference(ours, theirs) < 0.2 * difference(ours, others)
    if adapter:
        assert difference(ours, theirs) < 0.2 * difference(ours, drawer.draw(text, [], SEED))


def test_the_reference_says_what_both_draw(server: SmallWorld, drawers: dict[str, Drawer]):
    drawer = drawers[ADAPTERS[0]]
    right = {"colour": 0, "shape": 0}
    for sample in REFERENCES:
        thing = sample.scene.things[0]
        ours = read(drawer.draw("", [drawer.prompt(sample.picture)], SEED))
        theirs = read(server.pictures(unit(sample.picture))[0])
        for name in right:
            assert getattr(ours, name) == getattr(theirs, name), (name, thing)
            right[name] += ours.agrees(thing, name)
    # By chance 1 of 8 would agree.
    assert min(right.values()) >= len(REFERENCES) - 1, right


def test_each_half_shows_the_reference_of_its_region(server: SmallWorld, drawers: dict[str, Drawer]):
    """Two units with a mask each, in a picture of twice the width: as Standalone draws it, and what is drawn in a half
    has attributes of its own reference, hardly any of the other's."""
    own = other = 0
    for pair in zip(REFERENCES[::2], REFERENCES[1::2], strict=True):
        units = [unit(sample.picture, mask=b64(half_mask(side))) for side, sample in enumerate(pair)]
        picture = server.pictures(*units, width=2 * data.SIDE)[0]
        things = [sample.scene.things[0] for sample in pair]
        for side, ours in enumerate(fine.halves(drawers[ADAPTERS[0]], *(sample.picture for sample in pair), SEED)):
            theirs = picture.crop((side * data.SIDE, 0, (side + 1) * data.SIDE, data.SIDE))
            assert difference(ours, theirs) < 3
            seen = read(theirs)
            for name in ("colour", "texture", "shape"):
                if getattr(things[0], name) != getattr(things[1], name):
                    own += seen.agrees(things[side], name)
                    other += seen.agrees(things[1 - side], name)
    assert own >= 6, (own, other)
    assert other <= own / 4, (own, other)


def test_the_table_draws_each_method_once_and_asks_for_what_there_is(tmp_path: Path):
    """tests/webui/table.py: one column each, our units as a job checks them, the full caption for the text alone."""
    from lib_ipadapter.evaluation.items import read_items
    from lib_ipadapter.evaluation.remote import fill
    from lib_ipadapter.evaluation.run import plan_columns
    from lib_ipadapter.unit import Unit

    from . import table

    methods = table.methods("http://127.0.0.1:1")
    columns = [(column.method.name, column.weight) for column in plan_columns(methods, (0.0, 1.0), lambda line: None)]
    names = ["reference-only", "reference-adain-attn", "text"]
    assert columns == [("base", 0.0), ("base", 1.0), ("plus", 1.0), *((name, None) for name in names)]
    table.write_held_out(tmp_path, 1)
    (item,) = read_items(tmp_path)
    prompts = {method.name: method.prompt(item, "") for method in methods}
    assert prompts.pop("text") == item.fields["full"] != ""
    assert set(prompts.values()) == {""}
    values = {"reference": b64(REFERENCES[0].picture), "caption": "", "seed": 3, "weight": 1.0}
    for method in methods[:2]:
        (unit,) = fill(method.payload, values)["alwayson_scripts"]["IP-Adapter"]["args"]
        assert f"{Unit.parse(unit).model}.safetensors" in ADAPTERS
