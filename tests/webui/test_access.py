"""Who may call the routes, and how much a request may bring."""

from __future__ import annotations

import base64
import contextlib
import http.cookiejar
import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.synthetic import adapter_tensors, write_adapter

from .harness import WebUI, absent, refused
from .networks import CONTEXT, SD1_WIDTHS

LOGIN, CREDENTIALS = "ann:secret", "bob:hidden"
# What the routes write, so that a test sees it
BODIES = {
    ("POST", "presets"): {"name": "planted", "unit": {"weight": 0.5}},
    ("DELETE", "presets"): {"name": "kept"},
    ("POST", "inspect"): {"model": "sd1-base"},
}


class Locked(WebUI):
    """A WebUI with its page, perhaps without an API; asked nothing before it is up."""

    def _wait(self, deadline: float) -> None:
        import time

        if "--nowebui" in self.extra:
            super()._wait(deadline)
            return
        while "Startup time" not in self.log or "Model loaded in" not in self.log:
            assert time.monotonic() < deadline, self.log[-3000:]
            assert self.process.poll() is None, self.log[-3000:]
            time.sleep(0.3)


def basic(user: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}


def routes(webui: WebUI) -> list[tuple[str, str]]:
    """(method, path) of all our routes, as the program lists them."""
    return [(method, path) for method, path in webui.get("/probe/routes").json]


def statuses(webui: WebUI, headers: dict[str, str]) -> dict[tuple[str, str], int]:
    answers = {}
    for method, path in routes(webui):
        body = BODIES.get((method, path.rpartition("/")[2]), {})
        path = path.replace("{name}", "kept")
        answers[method, path] = webui.request(method, path, None if method == "GET" else body, headers).status
    return answers


@contextlib.contextmanager
def started(*flags: str, path: Path | None = None) -> Iterator[WebUI]:
    if reason := absent():
        pytest.skip(reason)
    with Locked(("sd1",), extra=flags, path=path) as webui:
        kept = webui.data / "models" / "ipadapter" / "presets"
        kept.mkdir(parents=True)
        (kept / "kept.json").write_text("{}")
        yield webui


def session(webui: WebUI, login: str) -> dict[str, str]:
    """The page's cookie after a login."""
    jar = http.cookiejar.CookieJar()
    user, _, password = login.partition(":")
    form = urllib.parse.urlencode({"username": user, "password": password}).encode()
    urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar)).open(f"{webui.url}/login", form)
    return {"Cookie": "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)}


def untouched(webui: WebUI) -> bool:
    folder = webui.data / "models" / "ipadapter"
    return sorted(p.name for p in (folder / "presets").iterdir()) == ["kept.json"] and not (folder / "embeds").exists()


def test_with_a_login_the_routes_ask_for_it():
    with started("--gradio-auth", LOGIN) as webui:
        asked = statuses(webui, {})
        assert {("POST", "/ip-adapter/embeds"), ("POST", "/ip-adapter/train")} <= asked.keys()
        assert len(asked) >= 11
        assert set(asked.values()) == {401}, asked
        assert set(statuses(webui, basic("ann:guess")).values()) == {401}
        assert set(statuses(webui, {"Cookie": "access-token=guess; access-token-unsecure=guess"}).values()) == {401}
        assert untouched(webui)
        for known in (session(webui, LOGIN), basic(LOGIN)):
            assert webui.get("/ip-adapter/version", **known).status == 200
        assert webui.post("/ip-adapter/presets", BODIES["POST", "presets"], **session(webui, LOGIN)).status == 200
        assert not untouched(webui)


def test_without_an_api_there_is_nothing_to_call():
    with started("--gradio-auth", LOGIN, "--no-api") as webui:
        assert routes(webui) == []
        for known in ({}, session(webui, LOGIN)):
            for method, path in (
                ("GET", "version"),
                ("POST", "presets"),
                ("DELETE", "presets"),
                ("POST", "embeds"),
            ):
                status = webui.request(method, f"/ip-adapter/{path}", None if method == "GET" else {}, known).status
                assert status in (401, 404, 405), (method, path, status)
        assert untouched(webui)


def asks_for_credentials(webui: WebUI) -> None:
    asked = statuses(webui, {})
    assert len(asked) >= 11
    assert set(asked.values()) == {401}, asked
    assert set(statuses(webui, basic(LOGIN)).values()) == {401}
    assert webui.get("/ip-adapter/version", **basic("bob:guess")).status == 401
    assert untouched(webui)
    for path in ("version", "model_list", "schema"):
        assert webui.get(f"/ip-adapter/{path}", **basic(CREDENTIALS)).status == 200


def test_with_credentials_of_the_api_and_a_login_the_routes_ask_for_the_credentials():
    with started("--api-auth", CREDENTIALS, "--gradio-auth", LOGIN) as webui:
        asks_for_credentials(webui)


# one process for what needs one of its own, and no page


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI without a page, with credentials of its API, whose Python has no onnxruntime."""
    path = tmp_path_factory.mktemp("packages")
    (path / "onnxruntime.py").write_text("raise ImportError('absent here')")
    with started("--api-auth", CREDENTIALS, "--nowebui", path=path) as webui:
        yield webui


def test_with_credentials_of_the_api_alone_the_routes_ask_for_them(alone: WebUI):
    asks_for_credentials(alone)


def test_without_onnxruntime_only_faces_are_refused(alone: WebUI, reference: str):
    write_adapter(alone.data / "models" / "ipadapter" / "sd1-faceid.safetensors",
                  adapter_tensors("faceid", CONTEXT, SD1_WIDTHS, seed=7))  # fmt: skip
    alone.headers = basic(CREDENTIALS)
    try:
        base = alone.known()
        said = refused(alone, {"model": "sd1-faceid", "images": [reference]})
        assert "the Python package onnxruntime, which cannot be imported (absent here)" in said
        assert 'pip install "onnxruntime>=1.15,<1.27"' in said
        assert alone.images({"model": "sd1-base", "images": [reference]}) != base
    finally:
        alone.headers = {}


def test_a_request_is_bounded(on_sd1: WebUI):
    large = {"name": "x", "unit": {"weight": 1}, "filler": "x" * (2 << 20)}
    reply = on_sd1.post("/ip-adapter/presets", large)
    assert reply.status == 413
    assert "at most 1048576 are read" in json.dumps(reply.json)
    assert on_sd1.post("/ip-adapter/presets", {"name": "x", "unit": "x" * (1 << 19)}).status == 422
    assert on_sd1.request("POST", "/ip-adapter/presets", {}, {"Content-Type": "text/plain"}).status == 422


def test_a_body_without_a_length_is_bounded_too(on_sd1: WebUI):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", on_sd1.port, timeout=60)
    chunks = (b"x" * 2**16 for _ in range(200))
    with contextlib.suppress(OSError):  # the server may close before all is sent
        connection.request(
            "POST", "/ip-adapter/inspect", chunks, {"Content-Type": "application/json"}, encode_chunked=True
        )
        assert connection.getresponse().status == 413
    connection.close()


def test_one_broken_preset_does_not_hide_the_others(on_sd1: WebUI):
    folder = on_sd1.data / "models" / "ipadapter" / "presets"
    folder.mkdir(exist_ok=True)
    texts = {"good": '{"weight": 0.5}', "newer": '{"warmth": 1}', "torn": '{"weight"', "list": "[]"}
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)
    try:
        reply = on_sd1.get("/ip-adapter/presets")
        assert reply.status == 200
        presets = reply.json["presets"]
        assert presets["good"] == {"weight": 0.5}
        assert "warmth" in presets["newer"]["error"]
        assert all("error" in presets[name] for name in ("torn", "list"))
    finally:
        for name in texts:
            (folder / f"{name}.json").unlink()
