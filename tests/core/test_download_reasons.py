"""What a download says that reaches nobody, or of which no more comes: why in words, and whose connection it was."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

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
    """A server: it answers ``said`` to a request, and hangs up after ``seconds``; then to the next as ``more`` has it,
    in the same way."""

    def __init__(self, said: bytes, seconds: float = 0, *more: Any) -> None:
        super().__init__(daemon=True)
        self.turns = [(said, seconds), *zip(more[::2], more[1::2], strict=True)]
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        with self.socket:
            for said, seconds in self.turns:
                with self.socket.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(said)
                    time.sleep(seconds)


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
        ("https", PLAIN, 0, "no secure connection is made: wrong version number"),
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


def test_a_stall_of_the_hub_is_not_laid_on_the_store(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store failed in the attempt before; in this one it was never asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module, "TIMEOUT", 1.0)
    store = Answers(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    moved = f"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: http://{store.host}/f\r\nContent-Length:".encode()
    hub = Answers(moved + b" 0\r\n\r\n", 0, moved + b" 50\r\n\r\n", 3)
    with pytest.raises(DownloadError, match=f"the connection to {hub.host} failed .nothing came"):
        download(f"http://{hub.host}/f", target, None, HASH, attempts=2)


def test_a_refusal_of_the_store_is_laid_on_it(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    store = Answers(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    hub = Answers(f"HTTP/1.1 302 Found\r\nLocation: http://{store.host}/f\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(DownloadError, match=f"403 Forbidden by {store.host}, to which that sends on"):
        download(f"http://{hub.host}/f", target, None, HASH)


@pytest.mark.parametrize("answer", ["", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"])
def test_logins_in_addresses_are_not_shown(target: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    store = Answers(answer.encode())
    moved = f"HTTP/1.1 302 Found\r\nLocation: http://u:secret@{store.host}/f\r\nContent-Length: 0\r\n\r\n"
    hub = Answers(moved.encode())
    with pytest.raises(DownloadError) as caught:
        download(f"http://me:secret@{hub.host}/f", target, None, HASH, attempts=1)
    assert "secret" not in f"{caught.value} {caught.value.detail}"
    assert store.host in str(caught.value)


@pytest.mark.parametrize("address", [b"http://.x/f", b"http://[::1", b"http://\xff\xfe/f", b"ftp://x/f?sig=secret"])
def test_where_a_server_sends_on_to_may_be_anything(target: Path, monkeypatch: pytest.MonkeyPatch, address: bytes):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    hub = Answers(b"HTTP/1.1 302 Found\r\nLocation: " + address + b"\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(DownloadError, match="the address that it sends on to, or that of a proxy, cannot be used"):
        download(f"http://{hub.host}/f", target, None, HASH, attempts=1)


def test_lost_certificates_are_not_the_disks_fault(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(DownloadError, match=r"to 127\.0\.0\.1:9 failed .*CA certificate bundle") as caught:
        download("https://127.0.0.1:9/f", target, None, HASH, attempts=1)
    assert "cannot be written" not in str(caught.value)


@pytest.mark.parametrize("address", [
    "http://[::1/f", "ftp://me:secret@x/f", "https://", "https:///f", "x", "me:secret@mirror.example/f",
    "https://me:secret@/f", "https://me:secret@:80/f", "https://me:secret@127.0.0.1:99999/f", "http://u:secret@[::1",
    "https://me:sec/secret@host/f", "http://me:sec\tret@127.0.0.1:9/f",
])  # fmt: skip
def test_what_is_no_address_is_refused(target: Path, address: str) -> None:
    with pytest.raises(DownloadError, match="expected an address that begins with https://") as caught:
        download(address, target, None, HASH)
    assert "sec" not in f"{caught.value} {caught.value.detail}"


@pytest.mark.parametrize(("proxy", "why"), [
    ("socks5://me:secret@127.0.0.1:9", "SOCKS proxy, for which the Python package PySocks is missing"),
    ("http://.x:80", "or that of a proxy, cannot be used"),
    ("http://me:secret@127.0.0.1:99999", "or that of a proxy, cannot be used"),
])  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_said(target: Path, monkeypatch: pytest.MonkeyPatch, proxy: str, why: str):
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy if "https" in name.lower() else "")
    with pytest.raises(DownloadError, match=why) as caught:
        download("https://example.org/f", target, None, HASH, attempts=1)
    assert "secret" not in str(caught.value)


def test_a_fault_of_ours_is_no_fault_of_the_server(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("requests.get", broken)
    with pytest.raises(TypeError, match="a bug"):
        download("https://example.org/f", target, None, HASH)


@pytest.mark.parametrize(("said", "why"), [
    (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "the proxy needs a login"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "the server offers 3 bytes, expected 5"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", "came from"),
])  # fmt: skip
def test_what_came_is_told_without_a_login(target: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, why: str):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    host = Answers(said).host.replace("127.0.0.1", "LOCALHOST")
    with pytest.raises(DownloadError, match=why) as caught:
        download(f" http://me:secret@{host}/f", target, 5, HASH, attempts=1)
    assert "secret" not in f"{caught.value} {caught.value.detail}"
    assert "sends on" not in str(caught.value)


def test_nobody_states_a_hash(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde")
    with pytest.raises(DownloadError, match=f"nor the server at http://{server.host}/f states its SHA-256"):
        download(f"http://token@{server.host}/f", target, attempts=1)
