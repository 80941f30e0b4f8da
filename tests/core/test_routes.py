"""Each route, tried without and with a password, under the WebUI's flags; the WebUI's modules are stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
PROBE = """
import contextlib, json, sys, types
folder, cases = sys.argv[1], json.loads(sys.argv[2])

def module(name, **content):
    made = sys.modules[f"modules.{name}"] = types.ModuleType(f"modules.{name}")
    vars(made).update(content)
    setattr(sys.modules["modules"], name, made)

sys.modules["modules"] = types.ModuleType("modules")
options = types.SimpleNamespace(ckpt_dir=None, no_half=True)
module("shared", cmd_opts=options, opts=types.SimpleNamespace(data={}), sd_model=None)
module("paths", models_path=folder, extensions_dir=folder)
module("call_queue", queue_lock=contextlib.nullcontext())
module("initialize_util", get_gradio_auth_creds=lambda: [])
for name in ("devices", "lowvram", "sd_models", "sd_unet"):
    module(name)

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from lib_ipadapter.webui.api import register
from lib_ipadapter.webui.hosts import choose
from lib_ipadapter.webui.models import Models

ways = {
    "nobody": {}, "ann": {"auth": ("ann", "secret")}, "bob": {"auth": ("bob", "hidden")},
    "guess": {"auth": ("ann", "guess")}, "stranger": {"auth": ("eve", "")}, "nameless": {"auth": ("", "")},
    "cookie": {"cookies": {"access-token": "token"}}, "false cookie": {"cookies": {"access-token": "guess"}},
}

def user(request: Request):  # gradio's
    return "ann" if request.cookies.get("access-token") == "token" else None

def answers_of(name, flags, logins):
    sys.modules["modules.paths"].models_path = f"{folder}/{name}"
    vars(sys.modules["modules.shared"].cmd_opts).update({"api": False, "nowebui": False, "api_auth": "", **flags})
    sys.modules["modules.initialize_util"].get_gradio_auth_creds = lambda: [tuple(pair) for pair in logins]
    app = FastAPI()
    app.get("/user")(user)
    register(app, Models(choose()))
    routes = [(m, r.path) for r in app.routes if r.path.startswith("/ip-adapter") for m in sorted(r.methods)]
    answers = {}
    for way, given in ways.items():
        client, auth = TestClient(app, cookies=given.get("cookies")), given.get("auth")
        answers[way] = {f"{m} {path}": client.request(m, path, auth=auth).status_code for m, path in routes}
        body = {"name": way, "unit": {"weight": 0.5}}
        answers[way]["saved"] = client.post("/ip-adapter/presets", json=body, auth=auth).status_code
    return answers

def kept_of(megabytes):
    # bytes of known base64 under that setting, and behind a release
    sys.modules["modules.shared"].opts = types.SimpleNamespace(data={"ipadapter_cache_mb": megabytes})
    models = Models(choose())
    models.pictures.digest("a" * 4000)
    kept = [models.pictures._digests.size]
    models.release()
    return [*kept, models.pictures._digests.size]

answers = {name: answers_of(name, *case) for name, case in cases.items()}
print(json.dumps({**answers, "kept": [kept_of(1), kept_of(0)]}))
"""
LOGIN, API, AUTH = [["ann", "secret"]], {"api": True}, {"api_auth": "bob:hidden, carl:x"}
CASES: dict[str, tuple[Any, Any]] = {
    "credentials": ({**API, **AUTH}, []),
    "login": (API, LOGIN),
    "both": ({**API, **AUTH}, LOGIN),
    "no page": ({"nowebui": True, **AUTH}, []),
    "a login without a password": ({"nowebui": True}, [*LOGIN, ["eve"]]),
    "no passwords": (API, []),
    "no api": ({}, []),
    "no api and a login": ({}, LOGIN),
}
Answers = dict[str, dict[str, dict[str, int]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def answers(models: Path) -> Answers:
    """Status codes by case, way of asking, and route."""
    command = [sys.executable, "-c", PROBE, str(models), json.dumps(CASES)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def saved(models: Path, case: str) -> set[str]:
    return {path.stem for path in (models / case / "ipadapter" / "presets").glob("*.json")}


@pytest.mark.parametrize(("case", "known"), [
    ("credentials", {"bob"}), ("login", {"ann", "cookie"}), ("both", {"bob"}), ("no page", {"bob"}),
    ("a login without a password", {"ann", "cookie"}),
])  # fmt: skip
def test_each_route_asks(answers: Answers, models: Path, case: str, known: set[str]):
    for way, statuses in answers[case].items():
        assert len(statuses) >= 16
        assert {"POST /ip-adapter/train", "POST /ip-adapter/train/{name}/stop"} <= statuses.keys()
        if way in known:
            assert 401 not in statuses.values(), (way, statuses)
        else:
            assert set(statuses.values()) == {401}, (way, statuses)
    assert saved(models, case) == known


@pytest.mark.parametrize("case", ["no api", "no api and a login"])
def test_without_an_api_there_are_no_routes(answers: Answers, models: Path, case: str):
    for statuses in answers[case].values():
        assert set(statuses.values()) == {404}
    assert saved(models, case) == set()


def test_a_webui_without_passwords_asks_for_none(answers: Answers):
    assert 401 not in answers["no passwords"]["nobody"].values()


def test_known_base64_is_bounded_by_the_setting_and_freed_with_the_rest(answers: Any):
    """Not of routes, but it takes the same stand-ins."""
    (kept, released), nothing = answers["kept"]
    assert kept > 4000
    assert released == 0
    assert nothing == [0, 0]
