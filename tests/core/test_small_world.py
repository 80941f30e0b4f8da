"""The small world's pictures, what reads them, and the demo on random weights."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageFilter, ImageFont

import dev
from examples.small_world import augmentation, data, demo, models, publish, read
from lib_ipadapter.adapters.file import sha256
from lib_ipadapter.encoders import register_archs
from lib_ipadapter.encoders.configs import register_arch
from lib_ipadapter.errors import BrokenEncoder, FileError, ModelError, UnsupportedModel
from lib_ipadapter.evaluation import Item
from lib_ipadapter.standalone import Standalone
from tests.small_world import write_stand_in

ATTRIBUTES = ("shape", "colour", "texture", "size", "place")


def drawings(count: int) -> list[data.Sample]:
    """Drawings of one thing, seen and held-out combinations in turn."""
    found, index = [], 0
    while len(found) < count:
        sample = data.sample(77, index, unseen=index % 2 == 0)
        found += [sample] if len(sample.scene.things) == 1 else []
        index += 1
    return found


def blurred(picture: Image.Image) -> Image.Image:
    """About what an autoencoder does to it."""
    noise = np.random.default_rng(0).normal(0, 6, (*reversed(picture.size), 3))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)))
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


# Of 1000 drawings: shape, colour, texture and size 100 %, place 99 %, blurred or not.
@pytest.mark.parametrize("change", [lambda picture: picture, blurred], ids=["as drawn", "blurred"])
def test_attributes_are_read_from_the_pixels(change):
    right: Counter[str] = Counter()
    samples = drawings(100)
    for sample in samples:
        reading = read.read(change(sample.picture))
        right.update(name for name in ATTRIBUTES if reading.agrees(sample.scene.things[0], name))
    assert min(right[name] for name in ATTRIBUTES) >= 0.97 * len(samples), right


@pytest.mark.parametrize("side", [64, 96, 160])
def test_pictures_of_other_sizes_are_read_too(side):
    samples = drawings(40)
    right: Counter[str] = Counter()
    for sample in samples:
        reading = read.read(sample.picture.resize((side, side), Image.Resampling.BICUBIC))
        right.update(name for name in ATTRIBUTES if reading.agrees(sample.scene.things[0], name))
    assert min(right[name] for name in ("shape", "colour", "place")) >= 0.95 * len(samples), right


def test_a_crop_of_two_things_is_read_too():
    left = data.Thing("star", "red", "plain", "small", "left")
    right = data.Thing("ring", "blue", "striped", "small", "right")
    picture = data.draw(data.Scene((left, right), "white"), np.random.default_rng(0))
    for thing, box in ((left, (0, 0, 64, 128)), (right, (64, 0, 128, 128))):
        reading = read.read(picture.crop(box))
        assert (reading.shape, reading.colour, reading.texture) == (thing.shape, thing.colour, thing.texture)


@pytest.mark.parametrize("colour", [(200, 220, 230), (10, 10, 10)])
def test_nothing_is_read_from_an_empty_picture(colour):
    assert read.read(Image.new("RGB", (128, 128), colour)) == read.Reading()


def test_pictures_are_the_same_every_time():
    first, second = data.sample(3, 8), data.sample(3, 8)
    assert first.picture.tobytes() == second.picture.tobytes()
    assert first.caption == second.caption
    assert first.scene == data.scene_of(3, 8)
    assert data.sample(3, 9).picture.tobytes() != first.picture.tobytes()
    assert data.sample(4, 8).picture.tobytes() != first.picture.tobytes()


def test_training_never_sees_a_held_out_combination():
    seen = [thing for index in range(2000) for thing in data.scene_of(1, index).things]
    assert not any(data.held_out(thing) for thing in seen)
    assert all(data.held_out(data.scene_of(1, index, unseen=True).things[0]) for index in range(300))
    kinds = [
        data.Thing(shape, colour, texture, "large", "centre")
        for shape in data.SHAPES
        for colour in data.COLOURS
        for texture in data.TEXTURES
    ]
    assert sum(map(data.held_out, kinds)) == 32
    # Each pair of attributes is seen in another combination, so that there is something to learn it from.
    assert len({(t.shape, t.colour) for t in seen}) == 64
    assert len({(t.colour, t.texture) for t in seen}) == len({(t.shape, t.texture) for t in seen}) == 32


def test_captions_name_some_attributes_and_the_full_one_all():
    scene = data.Scene((data.Thing("heart", "pink", "dotted", "small", "left"),), "mint")
    assert data.caption(scene) == "a small dotted pink heart on the left on a mint background"
    rng = np.random.default_rng(0)
    some = {data.caption(scene, rng) for _ in range(200)}
    assert len(some) > 30
    assert "a pink heart" in some
    assert not any("striped" in text or "star" in text for text in some)


def test_what_a_caption_names_is_found_again():
    thing = data.Thing("ring", "orange", "checkered", "small", "right")
    everything = data.caption(data.Scene((thing,), "sky"))
    assert data.named(everything) == {**vars(thing), "background": "sky"}
    assert data.named("a checkered shape") == {"texture": "checkered"}
    rng = np.random.default_rng(1)
    for index in range(100):
        scene = data.scene_of(9, index)
        if len(scene.things) == 1:
            named = data.named(data.caption(scene, rng))
            shown = {**vars(scene.things[0]), "background": scene.background}
            assert named.items() <= shown.items()


def test_with_and_without_augmentation_differ_in_nothing_else(tmp_path: Path):
    plain, augmented = (augmentation.config(tmp_path, name, 350).as_dict() for name in augmentation.METHODS)
    differing = {name for name in plain if plain[name] != augmented[name]}
    assert differing == {"out", "cache_dir", "reference_crop", "reference_flip"}


def test_where_a_thing_lies_is_counted_for_the_text_or_the_reference():
    thing = data.Thing("heart", "red", "plain", "large", "left")
    item = Item("a", "", None, vars(thing))
    assert augmentation.elsewhere(item) == "right"
    rng = np.random.default_rng(0)
    for place, text, reference in (("left", 0, 1), ("right", 1, 0), ("top", 0, 0)):
        for colour, kept in (("red", 1), ("blue", 2 / 3)):
            drawn = data.draw(data.Scene((replace(thing, place=place, colour=colour),), "white"), rng)
            assert augmentation.text_wins(drawn, item) == text
            assert augmentation.image_wins(drawn, item) == reference
            assert augmentation.kept(drawn, item) == pytest.approx(kept)


# its text tower


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small world's files, of random weights."""
    pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
    return write_stand_in(tmp_path_factory.mktemp("small-world"))


@pytest.fixture
def renamed(weights: Path, tmp_path: Path) -> Path:
    """The checkpoint with a text tower named "own-tower", without that config; its yaml."""
    config = (weights / models.CHECKPOINT_CONFIG.name).read_text().replace(models.ARCH, "own-tower")
    (tmp_path / "own.yaml").write_text(config)
    (tmp_path / "own.safetensors").symlink_to(weights / models.CHECKPOINT.name)
    return tmp_path / "own.yaml"


def test_a_text_tower_of_its_own_is_found_beside_the_checkpoint(weights: Path):
    host = Standalone.load(weights / models.CHECKPOINT.name, weights / models.CHECKPOINT_CONFIG.name)
    tokens = host.encode_text(["a red star", ""])
    assert tokens.shape == (2, 77, 64)
    # What open_clip's own modules give, without the last block, as the WebUI computes it.
    clip = models.make_clip().eval()
    clip.load_state_dict(
        {key.removeprefix("cond_stage_model.model."): value for key, value in _state(weights).items()},
        strict=False,
    )
    with torch.no_grad():
        x = clip.token_embedding(open_clip.tokenize(["a red star", ""])) + clip.positional_embedding
        # Before open_clip 2.24 its blocks take [77, B, width].
        turn = not getattr(clip.transformer, "batch_first", False)
        x = x.transpose(0, 1) if turn else x
        for block in clip.transformer.resblocks[:-1]:
            x = block(x, attn_mask=clip.attn_mask)
        expected = clip.ln_final(x.transpose(0, 1) if turn else x)
    assert torch.allclose(tokens, expected, atol=1e-4)


def _state(weights: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(weights / models.CHECKPOINT.name)


def test_a_text_tower_that_nobody_knows_is_refused(renamed: Path):
    with pytest.raises(UnsupportedModel, match=r"own-tower.*own-tower\.json beside the yaml"):
        Standalone.load(renamed.with_suffix(".safetensors"), renamed)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"embed_dim": 8, "vision_cfg": 1, "text_cfg": {}}', b"\xff\xfe"])
def test_a_broken_config_is_refused_and_does_no_harm(renamed: Path, text: str | bytes):
    broken = renamed.with_name("own-tower.json")
    broken.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BrokenEncoder, match=r"own-tower\.json: expected an open_clip config"):
        Standalone.load(renamed.with_suffix(".safetensors"), renamed)
    assert register_archs([renamed.parent]) == []
    open_clip.add_model_config(models.CLIP_CONFIG)  # reads all that were ever added


def test_a_config_that_makes_no_clip_is_refused(renamed: Path):
    config = {"embed_dim": 8, "vision_cfg": {"no such field": 1}, "text_cfg": {}}
    name = "makes-no-clip"
    renamed.write_text(renamed.read_text().replace("own-tower", name))
    renamed.with_name(f"{name}.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"{name}.*no such field"):
        Standalone.load(renamed.with_suffix(".safetensors"), renamed)


def test_only_whole_configs_of_a_folder_are_registered(tmp_path: Path):
    whole = json.loads(models.CLIP_CONFIG.read_text())
    below = tmp_path / "below"
    below.mkdir()
    (below / "whole-tower.json").write_text(json.dumps(whole))
    (tmp_path / "vision-only.json").write_text(json.dumps({k: v for k, v in whole.items() if k != "text_cfg"}))
    (tmp_path / "ViT-H-14.json").write_text(json.dumps(whole))
    known = open_clip.get_model_config("ViT-H-14")
    (tmp_path / "notes.json").write_text('{"description": "a checkpoint of mine"}')
    assert register_archs([tmp_path, tmp_path / "not there"]) == ["whole-tower"]
    assert register_archs([tmp_path]) == []
    assert open_clip.get_model_config("whole-tower") == whole
    assert open_clip.get_model_config("vision-only") is None
    assert open_clip.get_model_config("ViT-H-14") == known
    assert not register_arch(below / "whole-tower.json")


def test_nothing_is_imported_where_there_is_no_config(tmp_path: Path):
    (tmp_path / "notes.json").write_text("{}")
    code = (
        "import sys, pathlib; from lib_ipadapter.encoders import register_archs; "
        "print(register_archs([pathlib.Path(sys.argv[1])]), 'open_clip' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=dev.ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[] False", run.stderr


# the demo


def test_the_demo_draws_what_it_says(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "WEIGHTS", (0.0, 1.0))
    rows = [row for row in demo.rows() if row.title.startswith(("image prompt", "inpainting"))][-2:]
    monkeypatch.setattr(demo, "rows", lambda: rows)
    # As "dev.py demo" calls it, but for the weights.
    called: list[list[str]] = []
    answer = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(dev, "environment", lambda: Path(sys.executable))
    monkeypatch.setattr(dev.subprocess, "run", lambda command, **kwargs: called.append(command) or answer)
    out = tmp_path / "new folder" / "demo.png"
    assert dev.demo(argparse.Namespace(out=str(out))) == 0
    assert called[0][:3] == [sys.executable, "-m", "examples.small_world.demo"]
    assert demo.main([*called[0][3:], "--weights", str(weights)]) == 0
    picture = Image.open(out)
    cells = [[_cell(picture, row, column) for column in range(4)] for row in range(2)]
    begins, reference, base, prompted = cells[0]
    assert len(begins.getcolors()) == 1
    assert reference.tobytes() == rows[0].reference.tobytes()
    assert base.tobytes() != prompted.tobytes()
    # Outside the circle the picture stays.
    corner = (0, 0, 20, 20)
    assert cells[1][3].crop(corner).tobytes() == rows[1].begin.crop(corner).tobytes()
    assert cells[1][2].tobytes() != cells[1][3].tobytes()


def _cell(sheet: Image.Image, row: int, column: int) -> Image.Image:
    step = data.SIDE + demo.GAP
    left, top = demo.LABEL + column * step, 2 * demo.HEAD + row * step
    return sheet.crop((left, top, left + data.SIDE, top + data.SIDE))


def test_the_demo_shows_what_training_never_saw():
    held_out = [
        thing
        for shape in data.SHAPES
        for colour in data.COLOURS
        for texture in data.TEXTURES
        if data.held_out(thing := data.Thing(shape, colour, texture, "large", "centre"))
    ]
    for row in demo.rows():
        reading = read.read(row.reference)
        assert any(all(reading.agrees(thing, name) for name in ATTRIBUTES[:3]) for thing in held_out), reading


def test_the_demo_needs_no_font(monkeypatch: pytest.MonkeyPatch):
    truetype = ImageFont.truetype

    def builtin_only(font: object, *args: object, **options: object) -> object:
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return truetype(font, *args, **options)

    monkeypatch.setattr(ImageFont, "truetype", builtin_only)
    row = demo.rows()[0]
    assert demo._sheet([(row, [row.reference] * len(demo.WEIGHTS))]).getcolors() is None


def test_the_demo_says_what_is_missing(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(FileError, match=r"ip-adapter-other\.safetensors: not in .*README"):
        demo.draw(weights, "ip-adapter-other.safetensors")
    out = tmp_path / "demo.png"
    assert demo.main(["--weights", str(tmp_path / "no folder"), "--out", str(out)]) == 2
    assert f"{models.CHECKPOINT.name}: not in" in capsys.readouterr().err
    assert not out.exists()
    assert demo.main(["--weights", str(weights), "--out", str(tmp_path / "demo.tiff")]) == 2
    assert "ends in .png" in capsys.readouterr().err


def test_the_shipped_weights_are_those_that_were_measured():
    lines = publish.SUMS.read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    shipped = {path.name for path in models.WEIGHTS.iterdir()} - {publish.SUMS.name}
    assert sums.keys() == shipped
    assert {name: sha256(models.WEIGHTS / name) for name in sums} == sums
    assert sum((models.WEIGHTS / name).stat().st_size for name in sums) <= 40e6
