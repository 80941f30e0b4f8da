"""The first look at a training's data, and the presets of the tab."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_ipadapter.encoders.spec import ENCODERS
from lib_ipadapter.errors import ConfigError, DataError
from lib_ipadapter.runs.yaml_text import changed, fields_of, text_of
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.runs.look import look
from lib_ipadapter.training.runs.recipe import PRESETS, composed, preset_named, suggested, variants_for


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i, size in enumerate([(640, 480), (640, 480), (512, 512), (300, 400), (900, 450)]):
        Image.new("RGB", size, (i * 40, 90, 30)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    return tmp_path


def test_counts_sizes_and_buckets(data: Path):
    (data / "1.txt").unlink()
    (data / "2.txt").write_text(" ")
    Image.new("RGB", (64, 64)).save(data / "4.ref.png")
    found = look(data, 512, 64)
    assert (found.pictures, found.measured, found.opened, found.broken_count) == (5, 5, 5, 0)
    assert (found.captions_missing, found.references) == (2, 1)
    assert (found.smallest, found.largest) == ((300, 400), (900, 450))
    assert dict(found.buckets) == {(576, 448): 2, (512, 512): 1, (448, 576): 1, (704, 320): 1}
    assert found.buckets[0] == ((576, 448), 2)
    assert found.small == 1
    assert found.as_dict()["pictures"] == 5


def test_broken_ones_are_named_also_those_whose_head_is_whole(data: Path):
    (data / "0.png").write_bytes(b"no picture")
    whole = (data / "1.png").read_bytes()
    (data / "1.png").write_bytes(whole[: len(whole) // 2])
    (data / "2.txt").write_bytes(b"\xff\xfe\xff")
    found = look(data)
    assert found.broken_count == 3
    assert {key for key, _ in found.broken} == {"0.png", "1.png", "2.png"}
    assert all(reason for _, reason in found.broken)


def test_it_ends_in_time_and_says_how_far_it_came(data: Path):
    now = iter(range(100))
    found = look(data, seconds=4, clock=lambda: float(next(now)))
    assert (found.pictures, found.measured, found.opened) == (5, 3, 0)
    now = iter(range(100))
    with pytest.raises(DataError, match="give the folder of the pictures alone"):
        look(data, seconds=0, clock=lambda: float(next(now)))


def test_a_folder_without_pictures_and_none_are_refused(tmp_path: Path):
    for given, said in (
        ("", "no folder is named"),
        (tmp_path, "no pictures in it"),
        (tmp_path / "no", "no such folder"),
    ):
        with pytest.raises(DataError, match=said):
            look(given)


def test_each_preset_is_a_training_that_can_start(tmp_path: Path):
    for preset in PRESETS:
        chosen = {"base": "b", "data": "d", "encoder": "e", "variant": "plus", "base_config": ""}
        fields = composed(preset, chosen)
        assert list(fields)[:4] == ["base", "data", "encoder", "variant"]
        assert TrainConfig.parse({**fields, "out": "o"}).batch == preset.fields["batch"]
        assert preset.peak <= preset.memory * 0.8, "what the kernels and the system need is left"
        assert fields_of(text_of(fields)) == fields
    fields = composed(PRESETS[0], {"base": "b", "data": "d", "encoder": "e", "variant": "faceid"})
    assert "encoder" not in fields
    assert TrainConfig.parse({**fields, "out": "o"}).cache
    with pytest.raises(ConfigError):
        preset_named("SD9")


@pytest.mark.parametrize(("base", "memory", "title"), [
    ("sd15", 0, "no GPU (slow)"), ("sd15", 4, "SD1.5, 6 GB"), ("sd15", 11.9, "SD1.5, 12 GB"),
    ("sdxl", 8, "SDXL, 12 GB"), ("sdxl", 80, "SDXL, 24 GB"), ("", 16, "SD1.5, 12 GB"),
])  # fmt: skip
def test_the_preset_is_suggested_by_model_and_memory(base: str, memory: float, title: str):
    assert suggested(base, memory).title == title


def test_variants_are_those_that_what_is_there_can_train():
    huge = ENCODERS["ViT-H-14"]
    other = next(spec for spec in ENCODERS.values() if spec.name != "ViT-H-14")
    assert variants_for(None, False) == []
    assert variants_for(huge, False) == ["base", "plus", "full"]
    assert variants_for(None, True) == ["faceid"]
    assert variants_for(huge, True) == ["base", "plus", "full", "faceid", "faceid-plus", "faceid-plusv2"]
    assert variants_for(other, True) == ["base", "plus", "full", "faceid"]


def test_what_people_wrote_into_the_text_stays():
    text = "base: a\nlr: 0.01\nsteps: 7\n"
    made = changed(text, {"base": "b", "variant": "plus", "encoder": ""}, ["base", "variant", "encoder"])
    assert fields_of(made) == {"base": "b", "variant": "plus", "lr": 0.01, "steps": 7}
    assert fields_of("") == {}
    assert text_of({}) == ""
