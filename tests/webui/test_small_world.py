"""The small world in the real WebUI: a checkpoint whose text tower open_clip does not know, and the pictures that
Standalone draws with the same files. With the shipped weights, their attributes too are the references'."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from examples.small_world import data, models
from examples.small_world.read import read
from lib_ipadapter.adapter import Adapter
from lib_ipadapter.encoders import EncoderSource, register_configs
from lib_ipadapter.prepare import Pictures, prepare
from lib_ipadapter.standalone import Standalone
from lib_ipadapter.unit import Unit
from tests.small_world import missing, write_stand_in

from .harness import WebUI, _link, absent, b64

ADAPTERS = (models.BASE_ADAPTER.name, models.PLUS_ADAPTER.name)
STEPS, CFG, SEED = 12, 4.0, 5
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


class Drawer:
    """Standalone with the same files."""

    def __init__(self, weights: Path) -> None:
        self.weights = weights
        self.host = Standalone.load(weights / models.CHECKPOINT.name, weights / models.CHECKPOINT_CONFIG.name)
        register_configs([weights])
        self.source = EncoderSource([weights])

    def picture(self, text: str = "", adapter: str = "", reference: Image.Image | None = None) -> Image.Image:
        prompts = []
        if reference is not None:
            unit = Unit.parse({"model": adapter, "images": [reference]})
            prompts.append(
                prepare(unit, Pictures([reference]), Adapter.load(self.weights / adapter), self.source)
            )
        drawn = self.host.generate(
            text, prompts=prompts, steps=STEPS, cfg=CFG, seed=SEED, size=(data.SIDE, data.SIDE)
        )
        return drawn[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights, or while they are not there a stand-in of random values."""
    return write_stand_in(tmp_path_factory.mktemp("small-world")) if missing() else models.WEIGHTS


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[SmallWorld]:
    if reason := absent():
        pytest.skip(reason)
    with SmallWorld(weights) as running:
        yield running


@pytest.fixture(scope="module")
def drawer(weights: Path) -> Drawer:
    return Drawer(weights)


@pytest.fixture
def trained() -> None:
    if names := missing():
        pytest.skip(f"not trained yet: {', '.join(names)}")


def unit(reference: Image.Image, adapter: str = ADAPTERS[0], **fields: object) -> dict[str, object]:
    return {"model": adapter, "images": [b64(reference)], **fields}


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
def test_the_picture_is_standalones(server: SmallWorld, drawer: Drawer, adapter: str):
    """The WebUI leaves out the last of DDIM's steps, at t = 1, where hardly any noise is left."""
    reference, text = REFERENCES[1].picture, "a red star"
    units = [unit(reference, adapter)] if adapter else []
    ours = drawer.picture(text, adapter, reference if adapter else None)
    theirs = server.pictures(*units, prompt=text)[0]
    others = server.pictures(*units, prompt=text, seed=SEED + 1)[0]
    assert difference(ours, theirs) < 3
    assert difference(ours, theirs) < 0.2 * difference(ours, others)
    if adapter:
        assert difference(ours, theirs) < 0.2 * difference(ours, drawer.picture(text))


@pytest.mark.usefixtures("trained")
def test_the_reference_says_what_both_draw(server: SmallWorld, drawer: Drawer):
    right = {"colour": 0, "shape": 0}
    for sample in REFERENCES:
        thing = sample.scene.things[0]
        ours = read(drawer.picture("", ADAPTERS[0], sample.picture))
        theirs = read(server.pictures(unit(sample.picture))[0])
        for name in right:
            assert getattr(ours, name) == getattr(theirs, name), (name, thing)
            right[name] += ours.agrees(thing, name)
    # By chance 1 of 8 would agree.
    assert min(right.values()) >= len(REFERENCES) - 1, right
