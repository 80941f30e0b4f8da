"""What a download says that reaches nobody, or of which no more comes: why in words, and whose connection it was."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from lib_ipadapter.errors import DownloadError
from lib_ipadapter.files import download as download_module
from lib_ipadapter.files.download import download

HASH = "0" * 64


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "encoder.safetensors"


def test_no_server(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module.time, "sleep", lambda _seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        host = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DownloadError) as caught:
        download(f"http://{host}/f", target, None, HASH)
    assert str(caught.value) == (
        f"encoder.safetensors: the connection to {host} failed (it is not reached: this "
        "computer may be offline, or the server down); try again, or fetch it by hand"
    )


class Answers(threading.Thread):
    """A server of one connection: it answers ``said`` to a request, and hangs up after ``seconds``."""

    def __init__(self, said: bytes, seconds: float = 0) -> None:
        super().__init__(daemon=True)
        self.said, self.seconds = said, seconds
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        with self.socket, self.socket.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(self.said)
            time.sleep(self.seconds)


BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + bytes(1_500_000)
TUNNEL = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
PLAIN = b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize(
    ("scheme", "said", "seconds", "why"),
    [
        ("http", b"", 3, "nothing came for 1 s"),
        ("http", BEGUN, 3, "nothing came for 1 s"),
        ("http", b"", 0, "it was cut"),
        ("http", BEGUN, 0, "it was cut"),
        ("https", PLAIN, 0, "it made no secure connection"),
        (
            "proxy",
            TUNNEL,
            0,
            "the proxy of this computer cannot be used: it answered 407 Proxy Authentication Required",
        ),
        ("proxy", b"", 0, "it was cut"),
    ],
)
def test_why_no_more_comes_is_said_in_words(target, monkeypatch, scheme: str, said: bytes, seconds: float, why: str):
    monkeypatch.setattr(download_module, "TIMEOUT", 1.0)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "" if scheme == "proxy" else "127.0.0.1")
    server = Answers(said, seconds)
    url = f"{scheme}://{server.host}/f"
    if scheme == "proxy":
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://{server.host}")
        url = "https://example.org/f"
    with pytest.raises(DownloadError) as caught:
        download(url, target, None, HASH, attempts=1)
    assert f"the connection to {url.split('/')[2]} failed ({why}); " in str(caught.value)
    assert ("bytes are kept" in str(caught.value)) == (said == BEGUN)


@pytest.mark.parametrize("said", [b"", BEGUN, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"])
def test_the_host_that_failed_is_named(target: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """The hub sends downloads on to its store."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    store = Answers(said)
    hub = Answers(f"HTTP/1.1 302 Found\r\nLocation: http://{store.host}/f\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(DownloadError, match=f"the connection to {store.host} failed"):
        download(f"http://{hub.host}/f", target, None, HASH, attempts=1)
