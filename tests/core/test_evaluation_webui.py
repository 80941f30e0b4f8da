"""A running WebUI as a method: its payload, its answers and its errors."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.errors import FileError, IPAdapterError
from lib_ipadapter.evaluation import Item
from lib_ipadapter.evaluation.methods import Job
from lib_ipadapter.evaluation.remote import WebUIMethod, fill, png_base64, read_payload
from tests.by_colour import plain, run


class Server:
    """A WebUI that answers with the reference that it was sent, or as ``status`` and ``body`` say."""

    def __init__(self) -> None:
        outer = self
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.status, self.body = 200, b""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), content))
                picture = content["alwayson_scripts"]["ControlNet"]["args"][0]["image"]
                body = outer.body or json.dumps({"images": [picture, "no picture"], "info": "{}"}).encode()
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


PAYLOAD = {
    "prompt": "best, {caption}", "seed": "{seed}", "steps": 20,
    "alwayson_scripts": {"ControlNet": {"args": [{"image": "{reference}", "weight": "{weight}", "module": "shuffle"}]}},
}  # fmt: skip


def test_places_are_filled_in_once_and_numbers_stay_numbers() -> None:
    values = {"reference": "QUJD", "caption": "a {seed} {weight}", "seed": 7, "weight": 0.5}
    filled = fill({"a": ["{seed}", "{weight}", {"b": "s={seed}, {caption}"}], "{seed}": 3, "c": None}, values)
    assert filled == {"a": [7, 0.5, {"b": "s=7, a {seed} {weight}"}], "{seed}": 3, "c": None}
    assert fill("data:image/png;base64,{reference}", values) == "data:image/png;base64,QUJD"
    assert fill("{other} {}", values) == "{other} {}"


def test_a_webui_stands_in_the_table(server: Server, tmp_path: Path) -> None:
    method = WebUIMethod("shuffle", server.url.replace("//", "//me:se%40cret@"), PAYLOAD)
    results, _ = run(tmp_path, [method], weights=(0.5, 1.0), seed=3)
    assert results.row("shuffle", 1.0).measures["clip_i"].mean == pytest.approx(1.0, abs=1e-5)
    assert len(server.requests) == 6
    path, headers, body = server.requests[0]
    assert path == "/sdapi/v1/txt2img"
    assert base64.b64decode(headers["Authorization"].split()[1]) == b"me:se@cret"
    assert (body["prompt"], body["seed"]) == ("best, a red thing", 3)
    unit = body["alwayson_scripts"]["ControlNet"]["args"][0]
    assert unit["weight"] == 0.5
    sent = Image.open(io.BytesIO(base64.b64decode(unit["image"])))
    assert sent.tobytes() == plain("red").tobytes()
    assert "cret" not in (tmp_path / "results.json").read_text()
    run(tmp_path, [method], weights=(0.5, 1.0), seed=3)
    assert len(server.requests) == 6


def test_a_payload_without_a_place_for_the_weight_has_no_lambda(server: Server, tmp_path: Path) -> None:
    payload = {**PAYLOAD, "alwayson_scripts": {"ControlNet": {"args": [{"image": "{reference}"}]}}}
    results, said = run(tmp_path, [WebUIMethod("plain", server.url, payload)], weights=(0.5, 1.0))
    assert [(row.method, row.weight) for row in results.rows] == [("reference", None), ("plain", None)]
    assert said == []


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (422, b'{"detail": "no such module"}', "422 .*no such module"),
        (500, b"oops", "500 .*oops"),
        (200, b"<html>", "no answer"),
        (200, b'{"images": []}', "without a picture"),
        (200, b'{"images": ["!"]}', "cannot be read"),
    ],
)
def test_the_webuis_errors_are_told(server: Server, tmp_path: Path, status: int, body: bytes, words: str) -> None:
    server.status, server.body = status, body
    with pytest.raises(IPAdapterError, match=f"^shuffle: .*{words}") as error:
        run(tmp_path, [WebUIMethod("shuffle", server.url, PAYLOAD)])
    assert server.url in str(error.value)


def test_a_webui_that_is_not_there(server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(IPAdapterError, match=r"no answer from .*--api"):
        run(tmp_path, [WebUIMethod("shuffle", server.url, PAYLOAD, timeout=5)])
    with pytest.raises(IPAdapterError, match="no address"):
        WebUIMethod("shuffle", "ftp://x", PAYLOAD)


def test_bad_payload_files(tmp_path: Path) -> None:
    for text, words in (("{", "not JSON"), ("[]", "no JSON object")):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(FileError, match=words):
            read_payload(tmp_path / "p.json")
    with pytest.raises(FileError, match="cannot be read"):
        read_payload(tmp_path / "absent.json")


@pytest.mark.parametrize("count", [1, 3])
def test_the_grid_is_not_taken_for_the_picture(server: Server, count: int) -> None:
    """Of several pictures the WebUI sends a grid first, and says so in ``info``."""
    colours = ["blue", "red", "green"][:count]
    sent = ["grid"] * (count > 1) + colours
    drawn = {"grid": Image.new("RGB", (9, 9), "white"), **{c: Image.new("RGB", (9, 9), c) for c in colours}}
    info = json.dumps({"index_of_first_image": int(count > 1), "all_seeds": [1, 2, 3][:count]})
    server.body = json.dumps({"images": [png_base64(drawn[name]) for name in sent], "info": info}).encode()
    method = WebUIMethod("m", server.url, {**PAYLOAD, "batch_size": count})
    (picture,) = method.draw([job()])
    assert picture.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("info", ['{"index_of_first_image": 7}', "[]", "{", '{"index_of_first_image": "a"}'])
def test_an_info_that_points_nowhere_is_refused(server: Server, info: str) -> None:
    server.body = json.dumps({"images": [png_base64(plain("red"))], "info": info}).encode()
    with pytest.raises(IPAdapterError, match="which picture is the first"):
        WebUIMethod("m", server.url, PAYLOAD).draw([job()])


def job() -> Job:
    item = Item("red", "a red thing", plain("red"))
    return Job(item, plain("red"), "", item.caption, 1.0, 5)
