"""Trainings from the real WebUI by its routes: a folder of pictures becomes an adapter in the list that draws; stopped,
killed, broken, and found again after the WebUI was restarted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .harness import WebUI, absent, b64, picture

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
        from lib_ipadapter.training.runs.runs import Runs

        runs = Runs(self.data / "models" / "ipadapter" / "training", self.data / "models" / "ipadapter")
        for name in runs.names():
            noted = runs.run(name).process()
            if noted:
                noted[0].terminate()
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


def state(webui: Own, name: str) -> dict[str, Any]:
    reply = webui.get(f"/ip-adapter/train/{name}")
    assert reply.status == 200, reply.body
    return reply.json


def until(webui: Own, name: str, what: Callable[[dict[str, Any]], bool], seconds: float = 180) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while not what(seen := state(webui, name)):
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
    reply = webui.post("/ip-adapter/train/long/stop", {})
    assert reply.json["phase"] in ("stopping", "stopped")
    seen = until(webui, "long", over)
    assert seen["phase"] == "stopped"
    assert "goes on from it" in seen["message"]
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
