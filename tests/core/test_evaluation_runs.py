"""Evaluations in processes of their own: started, followed, stopped, and what they found. A small script that prints
and writes what ``evaluate`` does stands for it; the real one runs in tests/webui/test_train_tab.py."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("psutil", reason="psutil is not installed")

from lib_ipadapter.encoders.recognise import recognise
from lib_ipadapter.errors import ConfigError, TrainingError, UnitError
from lib_ipadapter.evaluation.judges import arch_of
from lib_ipadapter.evaluation.options import EvaluateOptions
from lib_ipadapter.evaluation.runs.evaluation import Evaluation, progress
from lib_ipadapter.evaluation.runs.evaluations import Evaluations
from lib_ipadapter.evaluation.runs.report import read_report
from lib_ipadapter.evaluation.stats import Values
from lib_ipadapter.evaluation.table import Results, Row
from lib_ipadapter.files.library import Folder, Library
from lib_ipadapter.options import add_flags, as_flags, from_flags, parse
from lib_ipadapter.runs.folder import LOG
from lib_ipadapter.runs.launch import Launch
from lib_ipadapter.training.runs.runs import Runs
from tests.small_clip import write_clip
from tests.webui.networks import write_encoder

STANDING = """
import sys, time
from pathlib import Path
from tqdm import tqdm
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[3:] if "=" in flag)
way, out = sys.argv[1], Path(flags["out"])
assert sys.argv[2] == "evaluate"
for name, total in (("references", 3), ("pictures", 6), ("measuring", 6)):
    with tqdm(total=total, desc=name, unit="picture", file=sys.stderr, mininterval=0) as bar:
        for i in range(total):
            if way == "slow" and name == "pictures":
                time.sleep(0.2)
            if way == "dies" and name == "pictures" and i == 2:
                import os
                os.abort()
            if way == "errs" and name == "pictures" and i == 2:
                bar.close()
                print("stopped: 2 of 6 pictures are in OUT; start it again to go on", file=sys.stderr)
                print("error: sdxl-base was made for SDXL", file=sys.stderr)
                sys.exit(2)
            bar.update()
(out / "results.json").write_text(RESULTS)
print(f"| a | table |\\npictures, results.json, results.md and figures: {out}")
"""


ESTIMATE = {"mean": 0.5, "low": None, "high": None, "n": 1}


def results() -> Results:
    rows = (
        Row.of("reference", None, {"clip_t": Values([0.2, 0.3])}, 2),
        Row.of("base-model", 0.0, {"clip_i": Values([0.4, 0.5]), "clip_t": Values([0.3, 0.3])}, 2),
        Row.of("mine", 0.5, {"clip_i": Values([0.6, 0.8]), "clip_t": Values([0.2, 0.25])}, 2),
        Row.of("mine", 1.0, {"clip_i": Values([0.8, 0.9]), "clip_t": Values([0.1, 0.2])}, 2),
    )
    return Results(rows, {}, {"mine": "base-model"})


class Standing(Launch):
    """Starts the script instead of ``evaluate``."""

    way = "at once"

    def command(self, *arguments: str) -> list[str]:
        script = STANDING.replace("RESULTS", repr(json.dumps(results().as_dict())))
        return [self.python, "-c", script, self.way, *arguments]


def standing(way: str = "at once") -> Launch:
    return type("Way", (Standing,), {"way": way})()


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    for name in ("base.safetensors", "judge.safetensors"):
        (tmp_path / name).write_bytes(b"")
    return {"checkpoint": str(tmp_path / "base.safetensors"), "clip": str(tmp_path / "judge.safetensors"),
            "references": str(tmp_path), "adapter": ["mine=a.safetensors"], "weights": [-0.5, 0, 1]}  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Evaluations]:
    found = Evaluations(tmp_path / "ipadapter" / "evaluations")
    yield found
    for name in found.names():
        found.run(name).stop()


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(runs: Evaluations, name: str = "mine") -> Any:
    until(lambda: not runs.run(name).alive)
    return Evaluations(runs.root).run(name).state()  # as another WebUI finds it


def test_one_is_done_and_what_it_found_is_read(runs: Evaluations, config: dict[str, Any]):
    runs.start("mine", config, standing())
    state = ended(runs)
    assert (state.phase, state.done, state.total, state.message) == ("done", 6, 6, "")
    report = runs.run("mine").report()
    assert report is not None
    assert report.content == json.loads(json.dumps(results().as_dict()))
    assert [(row.method, row.weight, str(row.measures["clip_i"])) for row in report.results.rows[1:]] == [
        (row.method, row.weight, str(row.measures["clip_i"])) for row in results().rows[1:]
    ]
    assert [row.weight for row in report.results.lines()["mine"]] == [0.0, 0.5, 1.0]
    assert [str(d.measures["clip_i"]) for d in report.differences] == [
        str(d.measures["clip_i"]) for d in results().differences()
    ]
    library = Library([Folder(runs.root.parent)])
    (runs.root / "mine" / "x.safetensors").write_bytes(b"")
    library.refresh()
    assert library.names() == []


def test_it_is_followed_stopped_and_gone_on_with(runs: Evaluations, config: dict[str, Any], tmp_path: Path):
    runs.start("mine", config, standing("slow"))
    until(lambda: runs.run("mine").state().seconds_left is not None and runs.run("mine").state().done > 0)
    state = Evaluations(runs.root).run("mine").state()
    assert (state.phase, state.total) == ("drawing", 6)
    assert 0 < state.done < 6
    trainings = Runs(tmp_path / "training", tmp_path)
    trainings.beside = lambda: (Evaluations(runs.root),)
    with pytest.raises(TrainingError, match="the evaluation mine is running"):
        trainings.start("other", {"base": str(tmp_path / "base.safetensors"), "data": str(tmp_path),
                                  "encoder": str(tmp_path / "judge.safetensors")}, standing())  # fmt: skip
    assert runs.run("mine").report() is None
    Evaluations(runs.root).run("mine").stop()
    state = ended(runs)
    assert state.phase == "stopped"
    assert "of 6; start it again to go on: pictures that are drawn are kept" in state.message
    runs.start("mine", config, standing())
    assert ended(runs).phase == "done"


@pytest.mark.parametrize(("way", "phase", "said"), [
    ("dies", "killed", "the process ended at picture 2 of 6 without a word"),
    ("errs", "failed", "sdxl-base was made for SDXL"),
])  # fmt: skip
def test_how_it_ended_is_said(runs: Evaluations, config: dict[str, Any], way: str, phase: str, said: str):
    runs.start("mine", config, standing())
    ended(runs)
    runs.start("mine", config, standing(way))
    state = ended(runs)
    assert (state.phase, state.done, state.total) == (phase, 2, 6)
    assert said in state.message
    assert runs.run("mine").report() is None, "what an earlier one found is not its own"


def test_a_bar_is_read_as_tqdm_writes_it():
    import io

    from tqdm import tqdm

    lines = [tqdm.format_meter(n, 12, 3 * n, prefix="pictures", unit="picture", ncols=80) for n in (0, 5)]
    assert progress([*lines[:1], "a warning"]) == ("drawing", 0, 12, None)
    assert progress(lines) == ("drawing", 5, 12, 21.0)
    hours = tqdm.format_meter(1, 1001, 9.0, prefix="measuring", unit="picture")
    assert progress([hours]) == ("measuring", 1, 1001, 9000.0)
    assert progress(["Loading: 3/4", "", "x"]) is None
    with tqdm(total=2, desc="references", file=io.StringIO()) as bar:
        assert progress([str(bar)]) == ("preparing", 0, 2, None)


def test_what_is_wrong_is_said_before_a_process_starts(runs: Evaluations, config: dict[str, Any]):
    bad = [
        ({**config, "weights": [9]}, "weights: got 9"), ({**config, "weight": 1}, "did you mean weights"),
        ({**config, "out": "elsewhere"}, "out: got 'elsewhere', expected nothing"),
        ({**config, "clip": "gone.pt"}, "gone.pt', expected a file that is there"),
        ({**config, "encoder": ["gone.pt"]}, "gone.pt', expected a file that is there"),
        ({**config, "weights": 1 << 80_000}, "weights: got a number of 80001 bits"),
        ({**config, "weights": [1, 1.0]}, "numbers that differ"), ({**config, "batch": True}, "batch: got True"),
        ("weights: [", "expected plain YAML"), (7, "YAML text"), ({"clip": config["clip"]}, "references"),
    ]  # fmt: skip
    for given, said in bad:
        with pytest.raises(ConfigError) as caught:
            runs.start("mine", given, standing())
        assert said in str(caught.value), given
    with pytest.raises(UnitError):
        runs.start("../mine", config, standing())
    assert runs.names() == []
    assert not runs.root.exists()
    with pytest.raises(UnitError, match="one of the evaluations: none was started yet"):
        runs.run("mine")


def test_fields_become_flags_that_mean_the_same(runs: Evaluations, config: dict[str, Any]):
    fields = runs.checked("mine", {**config, "weights": "-0.5, 0,1", "published": False, "dreambench": True,
                                   "encoder": config["clip"], "negative": "-a, b", "limit": 3, "cfg": 1e-07,
                                   "measure": ["csd=x", "dino=y"]})  # fmt: skip
    parser = argparse.ArgumentParser()
    add_flags(parser, EvaluateOptions)
    args = parser.parse_args(as_flags(EvaluateOptions, fields))
    assert from_flags(EvaluateOptions, args) == parse(EvaluateOptions, fields)
    assert fields["weights"] == [-0.5, 0.0, 1.0]


def test_files_of_others_in_the_folder_break_nothing(runs: Evaluations, config: dict[str, Any]):
    run: Evaluation = runs.start("mine", config, standing())
    ended(runs)
    good = json.loads((run.root / "results.json").read_text())
    for content in (
        "[", "[]", "{}", json.dumps({**good, "rows": []}), json.dumps({**good, "at_zero": 3}),
        json.dumps({**good, "rows": [{"method": "x"}]}), "\x00",
        json.dumps({**good, "rows": [{**good["rows"][1], "measures": {"clip_i": {**ESTIMATE, "mean": math.nan}}}]}),
        json.dumps({**good, "differences": [1]}),
    ):  # fmt: skip
        (run.root / "results.json").write_text(content)
        assert read_report(run.root / "results.json") is None, content
        assert run.state().phase == "done"
    (run.root / LOG).write_bytes(b"\xff\x00pictures:  50%|\xff| 1/2 [00:01<00:0")
    assert run.state().phase == "killed"


def test_a_clip_with_both_towers_can_measure(tmp_path: Path):
    path, _ = write_clip(tmp_path)
    assert arch_of(recognise(path)) == ""
    content = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({key: content[key] for key in ("embed_dim", "vision_cfg")}))
    assert arch_of(recognise(path)) is None, "Clip.load could not build its text tower"
    assert arch_of(recognise(write_encoder(tmp_path))) is None, "only a vision tower"
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    assert arch_of(recognise(tmp_path / "other.safetensors")) is None


def test_an_encoder_may_be_named(
    runs: Evaluations, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "convnext_atto.d2_in1k"
    own = tmp_path / "models" / "clip_vision" / f"{name}.safetensors"
    own.parent.mkdir(parents=True)
    save_file({"x": torch.ones(1)}, own)
    monkeypatch.chdir(tmp_path)
    fields = runs.checked("mine", {**config, "encoder": [name, str(tmp_path)]})
    assert [os.path.samefile(*pair) for pair in zip(fields["encoder"], (own, tmp_path), strict=True)] == [True, True]
