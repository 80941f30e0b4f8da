"""Evaluation without a model: statistics, references, the plan, resuming, the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.PngImagePlugin import PngInfo

from lib_ipadapter.errors import ConfigError, FileError, ImageError
from lib_ipadapter.evaluation import Item, Options, evaluate, read_items
from lib_ipadapter.evaluation.pictures import Pictures
from lib_ipadapter.evaluation.run import plan_columns
from lib_ipadapter.pictures import images
from tests.by_colour import COLOURS, THREE, ByColour, Mixer, plain, run

# A file that is there, outside of the folder
LEAVING = json.dumps({"images": [{"file_name": __file__, "id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]})

# references


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        plain("red").save(folder / name)


def test_texts_beside_pictures(tmp_path: Path) -> None:
    write(tmp_path, "b.png", "a.jpg", "sub/a.png")
    for name, text in {"b.txt": "second\n", "a.txt": "first", "sub/a.txt": "third"}.items():
        (tmp_path / name).write_text(text)
    items = read_items(tmp_path)
    assert [(item.key, item.caption) for item in items] == [
        ("a", "first"),
        ("b", "second"),
        ("sub_a", "third"),
    ]
    assert items[0].load().size == (40, 24)
    assert [item.key for item in read_items(tmp_path, limit=2)] == ["a", "b"]


def test_metadata_with_further_fields(tmp_path: Path) -> None:
    write(tmp_path, "x.png", "x.jpg")
    rows = [
        {"file_name": "x.png", "text": "one", "full": "all"},
        {"file_name": "x.jpg", "text": "two", "full": "more"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = read_items(tmp_path)
    assert [item.fields for item in items] == [{"full": "more"}, {"full": "all"}]
    assert len({item.key for item in items}) == 2
    assert items[0].fill("{caption}, {full}!") == "two, more!"
    with pytest.raises(ConfigError, match=r"\{fulll\}.*full"):
        items[0].fill("{fulll}")


def test_cocos_layout(tmp_path: Path) -> None:
    write(tmp_path, "000000000139.jpg", "000000000285.jpg", "000000009999.jpg")
    content = {
        "images": [{"id": 285, "file_name": "000000000285.jpg"}, {"id": 139, "file_name": "000000000139.jpg"},
                   {"id": 7, "file_name": "000000000007.jpg"}],
        "annotations": [{"image_id": 285, "id": 9, "caption": "a bear "},
        {"image_id": 139, "id": 5, "caption": "a room"},
                        {"image_id": 285, "id": 1, "caption": "another"}],
    }  # fmt: skip
    captions = tmp_path / "captions_val2017.json"
    captions.write_text(json.dumps(content))
    found = read_items(tmp_path, captions)
    assert [(item.key, item.caption) for item in found] == [
        ("000000000139", "a room"),
        ("000000000285", "a bear"),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no pictures"),
        ({"a.png": None}, "no caption.*a.png"),
        ({"a.png": None, "metadata.jsonl": '{"file_name": "b.png", "text": "x"}'}, "line 1 names b.png"),
        ({"a.png": None, "metadata.jsonl": '{"file": "a.png"}'}, "line 1: expected an object with file_name"),
        ({"a.png": None, "coco.json": "[]"}, "not COCO's captions"),
        ({"a.png": None, "coco.json": '{"images": [], "annotations": []}'}, "none of the 0 pictures"),
        ({"a.png": None, "coco.json": '{"images": [{"file_name": 5, "id": [1]}], "annotations": []}'}, "not COCO's"),
        ({"a.png": None, "coco.json": "[" * 100_000}, "not COCO's captions"),
        ({"a.png": None, "coco.json": LEAVING}, "none of the 1 pictures"),
    ],
)
def test_bad_folders_are_refused(tmp_path: Path, files: dict[str, str | None], words: str) -> None:
    for name, text in files.items():
        write(tmp_path, name) if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=words):
        read_items(tmp_path, tmp_path / "coco.json" if "coco.json" in files else None)


# the run


def test_the_plan_shares_lambda_zero_and_skips_what_cannot_be_drawn() -> None:
    base, said = Mixer("base-model", only=(0.0,)), []
    methods = [Mixer("a", base), Mixer("b", base, only=(0.0, 1.0)), Mixer("far")]
    columns = plan_columns(methods, (0.0, 0.5, 1.0), said.append)
    told = [(column.method.name, column.weight) for column in columns]
    assert told == [
        ("base-model", 0.0),
        ("a", 0.5),
        ("a", 1.0),
        ("b", 1.0),
        ("far", 0.0),
        ("far", 0.5),
        ("far", 1.0),
    ]
    assert said == ["b cannot draw λ = 0.5: skipped"]


def test_a_sweep_measures_what_it_should(tmp_path: Path) -> None:
    base = Mixer("base-model", only=(0.0,))
    mixer = Mixer("mixer", base)
    red = {"redness": lambda picture, item: picture.getpixel((0, 0))[0] / 255 if item.key == "red" else float("nan")}
    results, _ = run(tmp_path, [mixer], extra=red, weights=(0.0, 0.5, 1.0), count=2, seed=10, batch=4)
    assert len(base.jobs) == 6
    assert len(mixer.jobs) == 12
    assert [(j.item.key, j.seed) for j in base.jobs] == list(
        zip(["red"] * 2 + ["green"] * 2 + ["blue"] * 2, range(10, 16), strict=True)
    )
    assert {job.prompt for job in mixer.jobs} == {f"a {c} thing" for c in ("red", "green", "blue")}
    clip_i = [row.measures["clip_i"].mean for row in results.lines()["mixer"]]
    assert clip_i == sorted(clip_i)
    assert clip_i[-1] == pytest.approx(1.0, abs=1e-5)
    # grey against red, by hand
    grey, colour = (np.array(COLOURS[c], dtype=float) for c in ("grey", "red"))
    cosine = grey @ colour / np.linalg.norm(grey) / np.linalg.norm(colour)
    line = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert line["clip_i"] == line["clip_t"] == pytest.approx(cosine, abs=1e-4)
    assert line["clipscore"] == pytest.approx(2.5 * line["clip_i"], abs=1e-4)
    assert line["key"] == "red"
    full = results.row("mixer", 1.0)
    assert full.measures["top_1"].mean == 1.0
    assert full.measures["redness"].mean == pytest.approx(220 / 255, abs=1e-6)
    assert full.measures["redness"].n == 1
    assert full.measures["clip_i"].n == 3
    assert full.pictures == 6
    assert results.row("mixer", 0.0).method == "base-model"
    assert results.row("reference").measures["clip_t"].mean == pytest.approx(1.0, abs=1e-5)


def test_the_output(tmp_path: Path) -> None:
    base = Mixer("base-model", only=(0.0,))
    results, _ = run(tmp_path, [Mixer("mixer", base)], weights=(0.0, 1.0), rows=2)
    read = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in read["rows"]] == ["reference", "base-model", "mixer"]
    assert read["rows"][2]["measures"]["clip_i"] == pytest.approx(
        {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}, abs=1e-5
    )
    assert read["settings"]["methods"]["mixer"] == {"steps": 4}
    assert read["settings"]["versions"]["torch"] == torch.__version__
    table = (tmp_path / "results.md").read_text().splitlines()
    assert table[0] == "| method | λ | CLIP-I | CLIP-T | top-1 | references | pictures |"
    assert table[4] == "| mixer | 1 | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 1.000 [0.439, 1.000] | 3 | 3 |"
    assert table[2].startswith("| reference | – | – | 1.000")
    assert results.markdown().splitlines() == table
    grid = images.load(tmp_path / "grid.png")
    red = COLOURS["red"]
    assert grid.getpixel((20, 20 + 20)) == red  # the first reference
    assert grid.getpixel((4 + 44 + 20, 40)) == COLOURS["grey"]  # beside it λ = 0
    assert grid.getpixel((4 + 88 + 20, 40)) == red  # and λ = 1
    assert grid.size == (3 * 44 + 4, 20 + 2 * 64)
    assert images.load(tmp_path / "curve.png").width > 300
    run(tmp_path, [Mixer("mixer", base)], weights=(1.0,))
    assert not (tmp_path / "curve.png").exists()  # one λ is no curve


def test_without_matplotlib_all_else_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    _, said = run(tmp_path, [Mixer("mixer")], weights=(0.0, 1.0))
    assert any("pip install matplotlib" in line for line in said)
    assert (tmp_path / "results.json").is_file()


def test_a_second_call_draws_only_what_is_missing(tmp_path: Path) -> None:
    first = Mixer("mixer")
    one, _ = run(tmp_path, [first], weights=(0.5, 1.0))
    assert len(first.jobs) == 6
    lost = tmp_path / "pictures" / "mixer" / "0.5" / "green-0.png"
    cut = tmp_path / "pictures" / "mixer" / "1" / "blue-0.png"
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:60])
    again = Mixer("mixer")
    two, _ = run(tmp_path, [again], weights=(0.5, 1.0, 0.25))
    assert {(job.item.key, job.weight) for job in again.jobs} == {
        ("green", 0.5), ("blue", 1.0), ("red", 0.25), ("green", 0.25), ("blue", 0.25)
    }  # fmt: skip
    assert two.row("mixer", 0.5) == one.row("mixer", 0.5)


def test_an_interruption_loses_nothing(tmp_path: Path) -> None:
    stopped, said = Mixer("mixer"), []
    stopped.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(THREE, [stopped], ByColour(), tmp_path, Options(weights=(0.5, 1.0), batch=1), say=said.append)
    assert said[-1].startswith("stopped: 2 of 6 pictures are in ")
    rest = Mixer("mixer")
    run(tmp_path, [rest], weights=(0.5, 1.0), batch=1)
    assert len(rest.jobs) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 9}, "steps was 4, is now 9"),
        ({"options": {"seed": 5}}, "seed was 0, is now 5"),
        ({"options": {"prompt": "none"}}, 'prompt was "a red thing", is now ""'),
        ({"items": [Item("red", "a red thing", plain("blue"))]}, "reference was"),
    ],
)
def test_other_settings_are_refused_before_anything_is_drawn(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run(tmp_path, [Mixer("mixer")])
    change = dict(change)
    options, items = change.pop("options", {}), change.pop("items", THREE)
    other = Mixer("mixer", **change)
    with pytest.raises(FileError, match=words):
        run(tmp_path, [other], items, weights=(0.5, 1.0), **options)
    assert other.jobs == []


def test_a_foreign_picture_is_refused(tmp_path: Path) -> None:
    path = Pictures(tmp_path).path("mixer", 1.0, "red", 0)
    path.parent.mkdir(parents=True)
    for said in (None, "no JSON", "[1]", '{"settings": 3}', "[" * 100_000):
        info = PngInfo()
        if said:
            info.add_text("evaluation", said)
        plain("red").save(path, pnginfo=info)
        with pytest.raises(FileError, match=r"red-0\.png: .*other settings"):
            run(tmp_path, [Mixer("mixer")])
        assert images.load(path).size == (40, 24)


def test_a_reference_deep_in_folders_has_a_file_name_that_is_short_enough(tmp_path: Path) -> None:
    names = [f"{'x' * 200}/{'y' * 200}{end}" for end in "ab"]
    for name in names:
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        plain("red").save(path)
        path.with_suffix(".txt").write_text("red")
    keys = [item.key for item in read_items(tmp_path)]
    assert len(set(keys)) == 2
    assert all(len(key) < 200 for key in keys)
    assert not Pictures(tmp_path).has(Pictures(tmp_path).path("m", 1.0, keys[0], 0), {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": (9.0,)}, "weights: got .*9"),
        ({"weights": ()}, "at least one"),
        ({"weights": (0.5, 0.5)}, "differ"),
        ({"count": 0}, "count"),
        ({"batch": 65}, "batch"),
        ({"prompt": "{colour}"}, "prompt"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, [Mixer("mixer")], **options)


def test_bad_methods_and_references_are_refused(tmp_path: Path) -> None:
    for names in (["a", "a"], ["a", "A"], ["reference"], ["a/b"], ["../a"], ["con"], ["aux.x"], ["a."]):
        with pytest.raises(ConfigError, match="name of a method"):
            run(tmp_path, [Mixer(name) for name in names])
    with pytest.raises(ConfigError, match="a key of its own"):
        run(tmp_path, [Mixer("a")], THREE + THREE)
    with pytest.raises(ConfigError, match="extra"):
        run(tmp_path, [Mixer("a")], extra={"clip_i": lambda picture, item: 0.0})
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    broken, drawn = [*THREE, Item("broken", "x", tmp_path / "broken.png")], Mixer("a")
    with pytest.raises(ImageError, match="reference broken"):
        run(tmp_path, [drawn], broken)
    assert drawn.jobs == []


def test_a_template_is_prompt_and_what_is_measured_against(tmp_path: Path) -> None:
    mixer = Mixer("mixer")
    results, _ = run(tmp_path, [mixer], [Item("red", "a red thing", plain("red"), {"x": "1"})], prompt="blue {x}")
    assert [job.prompt for job in mixer.jobs] == ["blue 1"]
    red, blue = (np.array(COLOURS[c], dtype=float) for c in ("red", "blue"))
    cosine = red @ blue / np.linalg.norm(red) / np.linalg.norm(blue)
    assert results.row("reference").measures["clip_t"].mean == pytest.approx(cosine, abs=1e-5)
    assert results.row("mixer", 1.0).measures["clip_t"].mean == pytest.approx(cosine, abs=1e-5)
    assert results.settings["text"] == "the prompt's template, filled in"
    assert "top_1" not in results.row("mixer", 1.0).measures  # of one reference it would say nothing
