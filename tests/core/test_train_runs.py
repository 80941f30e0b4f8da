"""Trainings in processes of their own: started, found again, stopped, and what is said of their end. Small scripts that
write what the trainer writes stand for it; the real one runs in tests/webui/test_train_tab.py."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("psutil", reason="psutil is not installed")

from lib_ipadapter.errors import ConfigError, FileError, TrainingError, UnitError
from lib_ipadapter.files.library import Folder, Library
from lib_ipadapter.runs.folder import LOG, PROCESS
from lib_ipadapter.runs.launch import Launch
from lib_ipadapter.runs.process import Process, spawn
from lib_ipadapter.training.runs import folder
from lib_ipadapter.training.runs.ending import ending
from lib_ipadapter.training.runs.folder import Run
from lib_ipadapter.training.runs.progress import Progress, thinned
from lib_ipadapter.training.runs.runs import Runs

TRAINER = """
import json, os, sys, time
from pathlib import Path
out, steps, way = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if way == "waits":
    time.sleep(60)
for step in range(1, steps + 1):
    row = {"step": step, "loss": 1 / step, "lr": 1e-4, "pictures_per_second": 8.0, "time": time.time()}
    if step % 5 == 0:
        row["validation"] = 2 / step
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
    print(f"\\r {step}/{steps}", end="", file=sys.stderr, flush=True)
    if (out / "stop").exists():
        (out / "ip_adapter.safetensors").write_bytes(b"stopped")
        print(f"\\nstopped after step {step} of {steps}; start it again to go on from there", file=sys.stderr)
        print(out / "ip_adapter.safetensors")
        sys.exit(130)
    if way == "slow":
        time.sleep(0.05)
    if way == "dies" and step == 3:
        os.abort()
    if way == "errs" and step == 3:
        print("\\nerror: run: cannot be written to: No space left on device. Make room", file=sys.stderr)
        sys.exit(2)
    if way == "throws" and step == 3:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
(out / "ip_adapter.safetensors").write_bytes(b"finished")
print(f"\\n{out / 'ip_adapter.safetensors'}")
"""


class Standing(Launch):
    """Starts the script instead of the trainer."""

    way = "at once"

    def command(self, *arguments: str) -> list[str]:
        import yaml

        assert arguments[0] == "train"
        fields = yaml.safe_load(Path(arguments[1]).read_text())
        return [self.python, "-c", TRAINER, fields["out"], str(fields["steps"]), self.way]


def standing(way: str = "at once") -> Launch:
    return type("Way", (Standing,), {"way": way})()


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    for name in ("base.safetensors", "encoder.safetensors"):
        (tmp_path / name).write_bytes(b"")
    return {"base": str(tmp_path / "base.safetensors"), "encoder": str(tmp_path / "encoder.safetensors"),
            "data": str(tmp_path), "steps": 10}  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    found = Runs(tmp_path / "ipadapter" / "training", tmp_path / "ipadapter")
    yield found
    for name in found.names():
        noted = found.run(name).process()
        if noted:
            noted[0].terminate()


def again(runs: Runs) -> Runs:
    """The same folder, as another WebUI finds it."""
    return Runs(runs.root, runs.shelf)


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(runs: Runs, name: str = "mine") -> Any:
    until(lambda: not runs.run(name).alive)
    return runs.run(name).state()


@pytest.mark.parametrize("copied", [folder._copied, shutil.copyfile])  # also to a disk that keeps times otherwise
def test_a_training_is_done_and_its_adapter_is_in_the_list(runs: Runs, config: dict[str, Any], monkeypatch, copied):
    monkeypatch.setattr(folder, "_copied", copied)
    runs.start("mine", config, standing())
    state = ended(runs)
    assert (state.phase, state.step, state.steps, state.message) == ("done", 10, 10, "")
    assert state.validation == 0.2
    assert state.loss == pytest.approx(sum(1 / n for n in range(1, 11)) / 10)
    library = Library([Folder(runs.shelf)])
    library.refresh()
    assert library.names() == []
    assert again(runs).publish()
    library.refresh()
    assert library.names() == ["mine"]
    assert library.find("mine").read_bytes() == b"finished"
    assert runs.run("mine").state().adapter == "mine"
    assert not runs.publish()
    library.find("mine").unlink()
    assert not runs.publish(), "what people deleted stays away"
    runs.start("mine", {**config, "steps": 12}, standing())
    ended(runs)
    (runs.root / "mine" / "ip_adapter.safetensors").write_bytes(b"another one")
    assert runs.publish(), "a new version is put there"
    library.find("mine").unlink()
    (runs.shelf / "mine.safetensors").write_bytes(b"somebody else's")
    (runs.root / "mine" / "ip_adapter.safetensors").unlink()
    (runs.root / "mine" / "ip_adapter.safetensors").write_bytes(b"a third one")
    assert not runs.publish()
    assert library.find("mine").read_bytes() == b"somebody else's"
    with pytest.raises(UnitError, match="another name"):
        runs.start("mine", {**config, "steps": 14}, standing())


def test_it_is_followed_stopped_and_found_again(runs: Runs, config: dict[str, Any]):
    runs.start("mine", {**config, "steps": 100_000}, standing("slow"))
    until(lambda: runs.run("mine").state().seconds_left is not None)
    state = again(runs).run("mine").state()
    assert state.phase == "training"
    assert 100_000 * 0.04 < state.seconds_left < 100_000 * 10
    assert state.speed == 8.0
    assert state.adapter == ""
    with pytest.raises(TrainingError, match="mine is running"):
        again(runs).start("other", config, standing())
    assert runs.names() == ["mine"]
    again(runs).run("mine").stop()
    state = ended(again(runs))
    assert state.phase == "stopped"
    assert "start it again to go on from there" in state.message
    assert again(runs).publish()
    assert (runs.shelf / "mine.safetensors").read_bytes() == b"stopped"


def test_one_whose_files_are_deleted_while_it_runs_is_still_found_and_stopped(runs: Runs, config: dict[str, Any]):
    runs.start("mine", {**config, "steps": 100_000}, standing("slow"))
    until(lambda: runs.run("mine").state().step > 1)
    for name in ("run.yaml", "log.jsonl", LOG):
        (runs.root / "mine" / name).unlink()
    with pytest.raises(TrainingError, match="mine is running"):
        again(runs).start("other", config, standing())
    again(runs).run("mine").stop()
    again(runs).run("mine").stop()
    assert ended(again(runs)).phase in ("stopped", "killed")


def test_one_that_is_still_preparing_is_ended_at_once(runs: Runs, config: dict[str, Any]):
    runs.start("mine", config, standing("waits"))
    assert runs.run("mine").state().phase == "preparing"
    runs.run("mine").stop()
    assert ended(runs).phase == "stopped"
    runs.start("mine", config, standing())
    assert ended(runs).phase == "done"


@pytest.mark.parametrize(("way", "phase", "said"), [
    ("dies", "killed", "the process ended at step 3 without a word"),
    ("errs", "failed", "No space left on device. Make room"),
    ("throws", "failed", "memory ran out (RuntimeError: CUDA out of memory. Tried to allocate 2 GiB). Choose"),
])  # fmt: skip
def test_how_it_ended_is_said(runs: Runs, config: dict[str, Any], way: str, phase: str, said: str):
    runs.start("mine", config, standing(way))
    ended(runs)
    state = again(runs).run("mine").state()
    assert (state.phase, state.step) == (phase, 3)
    assert said in state.message
    assert not runs.publish()


def test_a_full_disk_takes_the_last_words_too(runs: Runs, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    runs.start("mine", config, standing("dies"))
    ended(runs)
    usage = __import__("shutil").disk_usage(runs.root)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=3_000_000))
    assert "the disk is full (3 MB are free)" in runs.run("mine").state().message


def test_a_number_that_another_process_has_now_is_not_ours(runs: Runs, config: dict[str, Any]):
    runs.start("mine", config, standing())
    ended(runs)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
        noted = json.loads((runs.root / "mine" / PROCESS).read_text())
        (runs.root / "mine" / PROCESS).write_text(json.dumps({**noted, "pid": other.pid, "made": noted["made"] - 60}))
        assert not again(runs).run("mine").alive
        again(runs).run("mine").stop()
        assert Process(other.pid, time.time()).alive(), "control: by its own time it is"
        assert other.poll() is None
        other.stdin.close()


def test_the_command_is_the_one_of_the_command_line(tmp_path: Path):
    launch = Launch(packages=(tmp_path / "ldm",), variables={"CUDA_VISIBLE_DEVICES": "1"})
    assert launch.command("train", str(tmp_path / "run.yaml")) == [
        sys.executable, "-m", "lib_ipadapter", "train", str(tmp_path / "run.yaml")
    ]  # fmt: skip
    env = launch.env()
    assert env["PYTHONPATH"].split(os.pathsep)[1] == str(tmp_path / "ldm")
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    run = subprocess.run(
        [*launch.command("train", str(tmp_path / "no.yaml"))], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "no.yaml" in run.stderr


def test_what_is_wrong_is_said_before_a_process_starts(runs: Runs, config: dict[str, Any], tmp_path: Path):
    bad = [
        ({**config, "steps": 0}, "steps: got 0"), ({**config, "stepz": 3}, "did you mean steps"),
        ({**config, "out": "elsewhere"}, "out: got 'elsewhere', expected nothing"),
        ({**config, "base": "gone.safetensors"}, "gone.safetensors', expected a file that is there"),
        ({**config, "data": str(tmp_path / "nowhere")}, "nowhere', expected a folder of pictures that is there"),
        ({**config, "validation": "gone"}, "gone', expected a folder of pictures that is there"),
        ("steps: [", "expected plain YAML"), ("- a", "a YAML mapping"), ("a: &x 1\nb: *x", "write them out"),
        ("steps: 1\n" * 20_000, "at most"), (7, "the YAML text"), ("data: x", "base"),
    ]  # fmt: skip
    for given, said in bad:
        with pytest.raises(ConfigError) as caught:
            runs.start("mine", given, standing())
        assert said in str(caught.value), given
    for name in ("", "../mine", "a/b", None, "con"):
        with pytest.raises(UnitError):
            runs.start(name, config, standing())
    (runs.shelf).mkdir(parents=True)
    (runs.shelf / "taken.safetensors").write_bytes(b"somebody's")
    with pytest.raises(UnitError, match="another name"):
        runs.start("taken", config, standing())
    assert runs.names() == []
    assert not (runs.root / "mine").exists()
    with pytest.raises(UnitError, match="none was started yet"):
        runs.run("mine")


def test_paths_are_from_the_folder_of_who_starts_it(runs: Runs, config: dict[str, Any], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held-out").mkdir()
    fields = runs.checked("mine", {**config, "base": "base.safetensors", "validation": "held-out"})
    assert fields["base"] == str(tmp_path / "base.safetensors")
    assert fields["validation"] == str(tmp_path / "held-out")
    assert fields["out"] == str(runs.root / "mine")


def test_nothing_is_done_before_a_start_that_is_refused(runs: Runs, config: dict[str, Any]):
    """As unloading the WebUI's model."""
    done: list[bool] = []
    launch = type("Way", (Standing,), {"way": "waits"})(
        before=lambda: done.append((runs.root / "mine" / "run.yaml").exists())
    )
    runs.root.parent.mkdir()
    runs.root.write_text("no folder can be made here")
    with pytest.raises(FileError, match=r"run\.yaml: cannot be written"):
        runs.start("mine", config, launch)
    runs.root.unlink()
    for name, given in (("mine", {**config, "steps": 0}), ("../x", config), ("mine", {**config, "base": "gone"})):
        with pytest.raises((ConfigError, UnitError)):
            runs.start(name, given, launch)
    assert done == []
    runs.start("mine", config, launch)
    assert done == [True]
    with pytest.raises(TrainingError, match="mine is running"):
        runs.start("other", config, launch)
    assert done == [True]
    runs.run("mine").stop()


def test_what_no_process_can_be_given_is_said(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"cannot be started .*null byte"):
        spawn([sys.executable, "a\0b"], tmp_path, {}, tmp_path / "log.txt")


def test_a_python_that_cannot_be_started_is_said(runs: Runs, config: dict[str, Any]):
    with pytest.raises(TrainingError, match="cannot be started"):
        runs.start("mine", config, Launch(python="/no/such/python"))
    assert runs.run("mine").state().phase == "killed"


def test_files_of_others_in_the_folder_break_nothing(runs: Runs, config: dict[str, Any]):
    run: Run = runs.start("mine", config, standing())
    ended(runs)
    for name, content in {
        "log.jsonl": b'[1]\n{"step": "x"}\nnull\n{"step": 3, "loss": 1, "time": null}\n\xff\n{"step": 4, "loss": 0.5}\n'
                     b'{"step": 1e300, "loss": 1}\n',
        PROCESS: b"[]", "run.yaml": b"steps: [1", LOG: b"\xff\xfe\x00",
    }.items():  # fmt: skip
        (run.root / name).write_bytes(content)
        state = again(runs).run("mine").state()
        assert not state.alive
    assert "expected plain YAML" in state.message
    (runs.root / "not-one").mkdir()
    (runs.root / "file").write_text("")
    assert runs.names() == ["mine"]


def test_only_what_is_new_of_the_log_is_read_and_a_new_one_anew(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": n, "loss": 1.0 * n, "time": 100.0 + n}) + "\n" for n in range(1, 1001)]
    path.write_text("".join(lines[:500]) + lines[500][:7])
    progress = Progress(path).update()
    assert progress.step == 500
    path.write_text("".join(lines[:500]) + "".join(lines[500:]))
    assert list(progress.update().steps) == list(range(1, 1001))
    assert progress.seconds_a_step(0) == 1.0
    assert progress.seconds_a_step(1099.5) is None
    assert progress.since(1100)
    assert not progress.since(1100.5)
    curve = progress.curve(100)
    assert len(curve) == 100
    assert curve[0] == (10, 5.5)
    assert curve[-1] == (1000, 995.5)
    assert thinned([], [], 10) == []
    path.write_text("".join(lines[:300]))
    assert progress.update().step == 300
    path.unlink()
    assert progress.update().step == 0


def test_a_log_that_several_read_at_once_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1.0, "time": 1.0}) + "\n" for n in (1, 2, 3)))

    class Slow(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            time.sleep(0.02)
            return super().read(size)

    progress = Progress(path)
    monkeypatch.setattr(Path, "open", lambda path, mode: Slow(path))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: progress.update(), range(4)))
    assert list(progress.steps) == [1, 2, 3]


def test_an_encoder_may_be_named(runs: Runs, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "convnext_atto.d2_in1k"
    own = tmp_path / "models" / "clip_vision" / f"{name}.safetensors"
    own.parent.mkdir(parents=True)
    save_file({"x": torch.ones(1)}, own)
    monkeypatch.chdir(tmp_path)
    fields = runs.checked("mine", {**config, "encoder": name})
    assert os.path.samefile(fields["encoder"], own), "the process runs in another folder"
    with pytest.raises(ConfigError, match=r"encoder: got 'vit_gone', expected a file .* vit_gone was not found"):
        runs.checked("mine", {**config, "encoder": "vit_gone"})


def test_what_packages_say_as_they_end_hides_no_end(tmp_path: Path):
    log = tmp_path / LOG
    log.write_text("9/10\n/out/ip_adapter.safetensors\nresource_tracker.py:224: leaked semaphore\n  warnings.warn\n")
    assert ending(log, 10, 10, False).how == "done"
    assert ending(log, 9, 10, False).how == "killed", "control: by the steps too"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the time of a process is kept as it was")
def test_a_clock_that_was_set_ends_no_training(runs: Runs, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Linux reckons when a process was made from the clock of now."""
    import psutil

    runs.start("mine", {**config, "steps": 100_000}, standing("slow"))
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 30)
    assert again(runs).run("mine").alive
    noted = json.loads((runs.root / "mine" / PROCESS).read_text())
    (runs.root / "mine" / PROCESS).write_text(json.dumps({**noted, "tick": f"{noted['tick']}1"}))
    assert not again(runs).run("mine").alive, "control: another process of this number is made at another tick"
    (runs.root / "mine" / PROCESS).write_text(json.dumps(noted))
