"""How much one request may bring, and how long a picture behind a URL may take."""

from __future__ import annotations

import base64
import http.server
import io
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from lib_ipadapter.errors import ImageError, UnitError
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.preprocess import preprocess
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui import bounds, fetch
from lib_ipadapter.webui.request import requested_units

pytest.importorskip("requests", reason="requests is not installed")


@pytest.mark.parametrize(("args", "message"), [
    ([[{}] * 101], "got '101 units', expected at most 100"),
    ([[{"images": ["x"] * 60}] * 5], "at most 256 in all units"),
    ([{"layers": "0:1, " * 5000}], "unit 1: layers"),
    ([{"curve": [[0, 0]] * 1001}], "unit 1: curve"),
    ([{}, {"model": "m" * 20_001}], "unit 2: model"),
    ([{"n" * 10_000: "x" * 20_001}], "unit 1: n"),
])  # fmt: skip
def test_a_request_that_brings_too_much(args, message):
    with pytest.raises(UnitError, match=message) as raised:
        requested_units(args)
    assert len(str(raised.value)) < 500


def test_addresses_of_the_references_own_masks_count():
    """Each may take half a minute."""
    images = [{"image": "aGk=", "mask": "http://127.0.0.1/mask.png"}] * 17
    with pytest.raises(UnitError, match="17 addresses or more"):
        requested_units([{"images": images}])


def test_pixels_of_masks_count(monkeypatch):
    """64 references may each bring one, of a few kilobytes and 100 megapixels; none is kept for the next."""
    monkeypatch.setattr(bounds, "PIXELS", 9_000)
    kept = []

    class Counted(Pictures):
        def load(self, picture):
            assert sum(one._image is not None for one in kept) <= 1
            kept.append(picture)
            return super().load(picture)

    def job(count):
        images = [{"image": shade(i), "mask": shade(200 + i)} for i in range(count)]
        pictures, pixels = Counted(), 0

        def allow(image):
            nonlocal pixels
            pixels = bounds.check_pixels([image], pixels)

        unit = Unit.parse({"model": "m", "images": images})
        preprocess(resolve(unit, NoStore(), pictures, allow), 8)

    job(4)
    assert len(kept) == 8
    assert all(picture._image is None for picture in kept)
    with pytest.raises(UnitError, match="megapixels or more together"):
        job(5)


def shade(level):
    buffer = io.BytesIO()
    Image.new("L", (30, 33), level).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_what_the_panel_can_hold_is_not_too_much():
    unit = {"images": ["x" * 5_000_000] * 25, "layers": "0:1, " * 1000}
    assert len(requested_units([[unit] * 10])) == 10


def test_pixels_in_sum():
    picture = Image.new("L", (10_000, 10_000))
    seen = 0
    for _ in range(10):
        seen = bounds.check_pixels([picture], seen)
    with pytest.raises(UnitError, match="1100 megapixels or more together"):
        bounds.check_pixels([picture], seen)


class Drip(http.server.BaseHTTPRequestHandler):
    """Answers a byte at a time, for ever."""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/whole":
            self.wfile.write(b"picture")
            return
        try:
            while not self.server.ended.wait(0.1):
                self.wfile.write(b"x")
                self.wfile.flush()
        except OSError:
            self.server.left.set()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    server.ended, server.left = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


def test_a_server_that_drips_is_left(server):
    began = time.monotonic()
    with pytest.raises(ImageError, match="not here after 1 s"):
        fetch.within(f"http://127.0.0.1:{server.server_port}/drip", "", 1)
    assert time.monotonic() - began < 5
    assert server.left.wait(10), "the connection was kept"


def test_a_picture_that_comes(server):
    assert fetch.within(f"http://127.0.0.1:{server.server_port}/whole", "", 10) == b"picture"


def test_a_redirect_is_not_followed(server):
    with pytest.raises(ImageError, match="a redirect"):
        fetch.within(f"http://127.0.0.1:{server.server_port}/moved", "", 10)
