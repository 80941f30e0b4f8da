"""Trainings and evaluations from the real WebUI by its routes: a folder of pictures becomes an adapter in the list that
draws, and is measured; stopped, killed, broken, and found again after the WebUI was restarted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_clip import write_clip

from .harness import WebUI, absent, b64, picture, without

PICTURES = 4
SMALL = {"resolution": 64, "steps": 4, "batch": 2, "workers": 0, "lr": 0.01, "save_every": 2, "sample_every": 2,
         "sample_steps": 2, "validation_every": 2, "validation_count": 2, "tensorboard": False}  # fmt: skip
ENDLESS = {**SMALL, "steps": 100_000, "sample_every": 0, "save_every": 50_000, "validation_every": 50_000}


class Own(WebUI):
    """Its trainings end with it; it can be started again over the same folder."""

    def restart(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(20)
        self._start()

    def stop(self) -> None:
        from lib_ipadapter.runs.folder import RunFolder

        for noted in (self.data / "models" / "ipadapter").glob("*/*/process.json"):
            found = RunFolder(noted.parent).process()
            if found:
                found[0].terminate()
        super().stop()


@pytest.fixture(scope="module")
def webui() -> Iterator[Own]:
    if reason := absent():
        pytest.skip(reason)
    with Own(("sd1",)) as running:
        yield running


@pytest.fixture(scope="module")
def data(webui: Own) -> Path:
    folder = webui.data / "pictures"
    folder.mkdir()
    for i in range(PICTURES):
        picture(i, (96, 64)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def fields(webui: Own, data: Path, **more: Any) -> dict[str, Any]:
    models = webui.data / "models"
    return {"base": str(models / "Stable-diffusion" / "sd1.safetensors"), "data": str(data),
            "encoder": str(models / "clip_vision" / "tiny-vit.safetensors"), "validation": str(data), **SMALL,
            **more}  # fmt: skip


def state(webui: Own, name: str, kind: str = "train") -> dict[str, Any]:
    reply = webui.get(f"/ip-adapter/{kind}/{name}")
    assert reply.status == 200, reply.body
    return reply.json


def until(
    webui: Own, name: str, what: Callable[[dict[str, Any]], bool], kind: str = "train", seconds: float = 180
) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while not what(seen := state(webui, name, kind)):
        assert time.monotonic() < end, seen
        time.sleep(0.3)
    return seen


def over(seen: dict[str, Any]) -> bool:
    return not seen["alive"]


def test_a_folder_becomes_an_adapter_that_draws(webui: Own, data: Path):
    (data / "broken.png").write_bytes(b"no picture")
    look = webui.post("/ip-adapter/train/look", {"data": str(data), "resolution": 64, "bucket_step": 16})
    (data / "broken.png").unlink()
    assert look.status == 200, look.body
    assert look.json["pictures"] == PICTURES + 1
    assert look.json["captions_missing"] == 0
    assert [key for key, _ in look.json["broken"]] == ["broken.png"]
    assert look.json["buckets"][0][1] == PICTURES
    config = yaml.safe_dump(fields(webui, data))
    reply = webui.post("/ip-adapter/train", {"name": "mine", "config": config, "unload": True})
    assert reply.status == 200, reply.body
    assert reply.json["phase"] == "preparing"
    base = webui.images()  # the model is there again for a job, and the WebUI usable meanwhile
    seen = until(webui, "mine", over)
    assert (seen["phase"], seen["step"], seen["steps"]) == ("done", 4, 4), seen
    assert [step for step, _ in seen["curves"]["validation"]] == [2, 4]
    assert len(seen["curves"]["loss"]) == 4
    assert seen["samples"] == ["step-00000002.png", "step-00000004.png"]
    assert seen["adapter"] == "mine"
    assert "mine" in webui.get("/ip-adapter/model_list").json["model_list"]
    drawn = webui.images({"model": "mine", "images": [b64(picture(0))]})
    assert drawn != base
    assert webui.images({"model": "mine", "images": [b64(picture(0))], "weight": 0}) == base
    taken = webui.post("/ip-adapter/train", {"name": "sd1-base", "config": config})
    assert taken.status == 422
    assert "another name" in taken.json["detail"]["message"]


MEASURED = {"adapter": ["sd1-base", "sd1-plus"], "weights": [0, 1], "steps": 2, "width": 64, "height": 64}


def test_adapters_are_measured_over_weights(webui: Own, data: Path):
    """The rest is found: the loaded checkpoint, the adapters' encoder, the CLIP."""
    write_clip(webui.data / "models" / "clip_vision")
    webui.get("/ip-adapter/model_list")  # lists the folders anew
    config = {**MEASURED, "references": str(data), "count": 2000}
    reply = webui.post("/ip-adapter/evaluate", {"name": "both", "config": config, "unload": True})
    assert reply.status == 200, reply.body
    until(webui, "both", lambda seen: seen["phase"] == "drawing" and seen["done"] > 1, "evaluate")
    other = webui.post("/ip-adapter/train", {"name": "second", "config": fields(webui, data)})
    assert "the evaluation both is running" in other.json["detail"]["message"]
    found = next(one for one in webui.get("/ip-adapter/evaluate").json["runs"] if one["name"] == "both")
    assert found["alive"]
    assert webui.post("/ip-adapter/evaluate/both/stop", {}).status == 200
    seen = until(webui, "both", over, "evaluate")
    assert seen["phase"] == "stopped"
    assert "pictures that are drawn are kept" in seen["message"]
    assert seen["results"] is None
    config = yaml.safe_dump({**MEASURED, "references": str(data)})
    assert webui.post("/ip-adapter/evaluate", {"name": "both", "config": config}).status == 200
    seen = until(webui, "both", over, "evaluate")
    assert (seen["phase"], seen["done"], seen["total"]) == ("done", 3 * PICTURES, 3 * PICTURES), seen
    rows = {(row["method"], row["weight"]): row["measures"]["clip_i"] for row in seen["results"]["rows"][1:]}
    assert set(rows) == {("base-model", 0), ("sd1-base", 1), ("sd1-plus", 1)}
    assert all(one["low"] < one["mean"] < one["high"] and one["n"] == PICTURES for one in rows.values())
    grid = webui.get("/ip-adapter/evaluate/both/grid")
    assert grid.body[:4] == b"\x89PNG"


def test_stopped_and_gone_on_with_after_a_restart_of_the_webui(webui: Own, data: Path):
    config = fields(webui, data, **ENDLESS)
    reply = webui.post("/ip-adapter/train", {"name": "long", "config": config})
    assert reply.status == 200, reply.body
    seen = until(webui, "long", lambda seen: seen["seconds_left"] is not None)
    assert seen["phase"] == "training"
    second = webui.post("/ip-adapter/train", {"name": "second", "config": config})
    assert second.status == 422
    assert "long is running" in second.json["detail"]["message"]
    webui.restart()
    found = next(one for one in webui.get("/ip-adapter/train").json["runs"] if one["name"] == "long")
    assert found["alive"]
    assert found["step"] > seen["step"]
    for measured in webui.get("/ip-adapter/evaluate").json["runs"]:  # of the test before, where it ran
        assert (measured["name"], measured["phase"], measured["alive"]) == ("both", "done", False)
    reply = webui.post("/ip-adapter/train/long/stop", {})
    assert reply.json["phase"] in ("stopping", "stopped")
    seen = until(webui, "long", over)
    assert seen["phase"] == "stopped"
    assert "start it again to go on from there" in seen["message"]
    assert "long" in webui.get("/ip-adapter/model_list").json["model_list"]
    assert (
        webui.post("/ip-adapter/train", {"name": "long", "config": {**config, "steps": seen["step"] + 2}}).status == 200
    )
    assert until(webui, "long", over)["phase"] == "done"
    assert state(webui, "long")["step"] == seen["step"] + 2


def test_a_killed_one_and_what_is_broken_are_said(webui: Own, data: Path):
    reply = webui.post("/ip-adapter/train", {"name": "killed", "config": fields(webui, data, **ENDLESS)})
    assert reply.status == 200, reply.body
    until(webui, "killed", lambda seen: seen["step"] > 0)
    import json

    pid = json.loads((webui.data / "models/ipadapter/training/killed/process.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    seen = until(webui, "killed", over)
    assert seen["phase"] == "killed"
    assert "without a word" in seen["message"]
    assert "killed" not in webui.get("/ip-adapter/model_list").json["model_list"]
    for config, said in (
        ({**SMALL, "stepz": 3}, "did you mean steps"),
        ("steps: [", "plain YAML"),
        (None, "YAML text"),
    ):
        reply = webui.post("/ip-adapter/train", {"name": "broken", "config": config})
        assert reply.status == 422
        assert said in reply.json["detail"]["message"]
    broken = webui.data / "pictures-none"
    broken.mkdir(exist_ok=True)
    reply = webui.post("/ip-adapter/train", {"name": "broken", "config": fields(webui, broken)})
    assert reply.status == 200
    seen = until(webui, "broken", over)
    assert seen["phase"] == "failed"
    assert "no pictures in it" in seen["message"]


def test_what_cannot_be_measured_is_said_with_the_remedy(webui: Own, data: Path):
    write_clip(webui.data / "models" / "clip_vision")
    webui.get("/ip-adapter/model_list")
    empty = webui.data / "no-references"
    empty.mkdir()
    bare = webui.data / "no-captions"
    bare.mkdir()
    picture(0).save(bare / "a.png")
    for change, said in (
        ({"references": str(empty)}, "no pictures in it"), ({"references": str(bare)}, "write a .txt beside each"),
        ({"references": str(empty / "x")}, "no such folder"), ({"references": " "}, "type the path of a folder"),
        ({"adapter": []}, "choose at least one adapter"), ({"adapter": ["none such"]}, "no adapter named"),
        ({"adapter": ["wide"]}, "no adapter fits the base model sd1: wide was made for"),
        ({"adapter": ["sd1-base", "wide"]}, "an adapter does not fit the base model sd1: wide was made for"),
        ({"adapter": ["needs-vit-h"]}, "needs-vit-h: "), ({"adapter": ["needs-vit-h"]}, "h94/IP-Adapter"),
        ({"checkpoint": "gone"}, "the path of a checkpoint, or one of sd1"), ({"weights": [9]}, "weights: got 9"),
        ({"clip": "gone.pt"}, "a file that is there"), ({"weight": 1}, "did you mean weights"),
        ({"adapter": 7}, "a list of adapters"), ({"limit": 0}, "limit: got 0"),
    ):  # fmt: skip
        config = {**MEASURED, "references": str(data), **change}
        reply = webui.post("/ip-adapter/evaluate", {"name": "wrong", "config": config})
        assert reply.status == 422, (change, reply.body)
        assert said in reply.json["detail"]["message"], change
    with without(webui.data / "models" / "clip_vision" / "small-judge.json"):
        webui.get("/ip-adapter/model_list")
        reply = webui.post("/ip-adapter/evaluate", {"name": "wrong", "config": {**MEASURED, "references": str(data)}})
        assert "put one with both towers into models/clip_vision" in reply.json["detail"]["message"]
    for path, body in (("evaluate", []), ("evaluate", {"name": "../x", "config": {}}), ("evaluate/none/stop", {})):
        assert webui.post(f"/ip-adapter/{path}", body).status == 422
    for path in ("evaluate/none", "evaluate/none/grid", "evaluate/wrong/grid"):
        assert webui.get(f"/ip-adapter/{path}").status == 422
    assert not (webui.data / "models/ipadapter/evaluations/wrong").exists()


def test_requests_are_checked(webui: Own, data: Path):
    for path, body in (
        ("train", {"name": "../x", "config": {}}), ("train", []), ("train/look", {"data": 7}), ("train/look", {}),
        ("train/look", {"data": str(data), "resolution": 10**9}), ("train/none/stop", {}),
        ("train/look", {"data": "x" * 10_000}), ("train", {"name": "y", "config": fields(webui, data), "unload": 1}),
    ):  # fmt: skip
        reply = webui.post(f"/ip-adapter/{path}", body)
        assert reply.status == 422, (path, reply.body)
    assert webui.get("/ip-adapter/train/none").status == 422
    assert webui.post("/ip-adapter/train", {"name": "x", "filler": "x" * (2 << 20)}).status == 413
    assert set(os.listdir(webui.data / "models/ipadapter/training")) <= {"mine", "long", "killed", "broken"}
