"""Downloads against a server on this machine that misbehaves on request."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lib_ipadapter.encoders import ENCODERS
from lib_ipadapter.encoders.fetch import download_encoder
from lib_ipadapter.encoders.spec import EncoderSpec, HubFile
from lib_ipadapter.errors import DownloadError, EncoderError
from lib_ipadapter.faces import fetch as face_fetch
from lib_ipadapter.faces import packs as face_packs
from lib_ipadapter.files import download as download_module
from lib_ipadapter.files.download import download, hub_url

CHUNK = download_module.CHUNK
DATA = bytes(range(256)) * 12_000  # 3 MB
HASH = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA at any path; the attributes say how badly."""

    daemon_threads = True
    ranges = True
    content = DATA
    stated_hash: str | None = None  # as the hub states it, on its redirect

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.cut_after: list[int] = []  # bytes after which each of the next answers breaks off
        self.statuses: list[int] = []  # status of each of the next answers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.seen.append((self.path, asked))
        if self.server.statuses:
            self.send_response(self.server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif "/resolve/" in self.path:
            self._redirect()
        else:
            self._send(int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0)

    def _redirect(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/store")
        self.send_header("X-Linked-Size", str(len(self.server.content)))
        if self.server.stated_hash:
            self.send_header("X-Linked-ETag", f'"{self.server.stated_hash}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, start: int) -> None:
        content = self.server.content
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.cut_after.pop(0) if self.server.cut_after else len(content)
        self.wfile.write(content[start : start + cut])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module.time, "sleep", lambda _seconds: None)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "made" / "encoder.safetensors"


def part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def test_fetches_verifies_and_reports(server: Server, target: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    found = download(f"{server.url}/f", target, len(DATA), HASH, lambda *step: steps.append(step))
    assert found == target
    assert target.read_bytes() == DATA
    assert steps[0] == (0, len(DATA))
    assert steps[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert not part(target).exists()


def test_the_final_name_never_holds_a_partial_file(server: Server, target: Path) -> None:
    seen = []
    download(f"{server.url}/f", target, None, HASH, lambda *_: seen.append(target.exists()))
    assert seen
    assert not any(seen)


def test_goes_on_after_a_cut_connection(server: Server, target: Path) -> None:
    server.cut_after = [1_000_000, 700_000]
    download(f"{server.url}/f", target, len(DATA), HASH)
    assert target.read_bytes() == DATA
    first, *later = [asked for _, asked in server.seen]
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in later]
    assert first is None
    assert 1_000_000 - CHUNK <= starts[0] <= 1_000_000
    assert starts[0] + 700_000 - CHUNK <= starts[1] <= starts[0] + 700_000


def test_a_later_call_goes_on_from_the_part(server: Server, target: Path) -> None:
    server.cut_after = [1_000_000]
    with pytest.raises(DownloadError, match=r"\d+ bytes are kept in encoder.safetensors.part, try again to resume"):
        download(f"{server.url}/f", target, len(DATA), HASH, attempts=1)
    kept = part(target).stat().st_size
    assert 1_000_000 - CHUNK <= kept <= 1_000_000
    assert not target.exists()
    download(f"{server.url}/f", target, len(DATA), HASH)
    assert server.seen[-1][1] == f"bytes={kept}-"
    assert target.read_bytes() == DATA


def test_a_server_that_cannot_resume_starts_again(server: Server, target: Path) -> None:
    server.ranges = False
    server.cut_after = [1_000_000]
    download(f"{server.url}/f", target, len(DATA), HASH)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_that_is_whole_is_only_verified(server: Server, target: Path, size: int | None) -> None:
    target.parent.mkdir()
    part(target).write_bytes(DATA)
    download(f"{server.url}/f", target, size, HASH)
    assert target.read_bytes() == DATA
    assert len(server.seen) == (0 if size else 1)


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 5)])
@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_of_another_file_is_replaced(server: Server, target: Path, left: bytes, size: int | None) -> None:
    target.parent.mkdir()
    part(target).write_bytes(left)
    download(f"{server.url}/f", target, size, HASH)
    assert target.read_bytes() == DATA


def test_a_wrong_hash_leaves_nothing(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match=HASH) as failure:
        download(f"{server.url}/f", target, len(DATA), "0" * 64)
    assert isinstance(failure.value, EncoderError)
    assert list(target.parent.iterdir()) == []


def test_a_wrong_size_is_noticed_before_it_is_fetched(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match=f"offers {len(DATA)} bytes, expected 5"):
        download(f"{server.url}/f", target, 5, HASH)
    assert list(target.parent.iterdir()) == []


def test_the_hubs_own_statement_is_verified(server: Server, target: Path) -> None:
    server.stated_hash = HASH
    download(f"{server.url}/a/b/resolve/main/f", target)
    assert target.read_bytes() == DATA
    server.stated_hash = "1" * 64
    with pytest.raises(DownloadError, match="1" * 64):
        download(f"{server.url}/a/b/resolve/main/f", target.with_name("other"))
    assert not target.with_name("other").exists()


def test_the_range_survives_the_hubs_redirect(server: Server, target: Path) -> None:
    server.stated_hash = HASH
    server.cut_after = [1_000_000]
    download(f"{server.url}/a/b/resolve/main/f", target)
    path, asked = server.seen[-1]
    assert path == "/store"
    assert asked is not None
    assert asked.startswith("bytes=9")
    assert target.read_bytes() == DATA


def test_a_file_that_nobody_vouches_for_is_refused(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be verified"):
        download(f"{server.url}/f", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "no such file"), (401, "login"), (403, "refused")])
def test_refusals_are_said_at_once(server: Server, target: Path, status: int, reason: str) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=f"{status}.*{reason}"):
        download(f"{server.url}/f", target, None, HASH)
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again(server: Server, target: Path) -> None:
    server.statuses = [503, 429]
    download(f"{server.url}/f", target, None, HASH)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/f", "encoder"])
def test_only_http(url: str, target: Path) -> None:
    with pytest.raises(DownloadError, match="https://"):
        download(url, target, None, HASH)


def test_no_space(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match="no space"):
        download(f"{server.url}/f", target, None, HASH)
    assert not target.exists()


def test_a_disk_that_fills_up_on_the_way(server: Server, target: Path) -> None:
    def full(done: int, _total: int | None) -> None:
        if done:
            raise OSError(28, "No space left on device")

    with pytest.raises(DownloadError, match=r"no space in .*No space left"):
        download(f"{server.url}/f", target, None, HASH, full)
    assert not target.exists()
    assert part(target).exists()


def test_progress_can_cancel_and_what_came_is_kept(server: Server, target: Path) -> None:
    def cancel(done: int, _total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(f"{server.url}/f", target, None, HASH, cancel)
    assert not target.exists()
    download(f"{server.url}/f", target, None, HASH)  # and the target is free for another call
    assert target.read_bytes() == DATA


def test_one_download_to_a_target_at_a_time(server: Server, target: Path) -> None:
    refused = []

    def again(_done: int, _total: int | None) -> None:
        with pytest.raises(DownloadError, match="already"):
            download(f"{server.url}/f", target, None, HASH)
        refused.append(True)

    download(f"{server.url}/f", target, None, HASH, again)
    assert refused


def test_a_right_file_is_kept_and_a_wrong_one_replaced(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(DATA)
    download(f"{server.url}/f", target, None, HASH)
    assert server.seen == []
    target.write_bytes(b"old")
    download(f"{server.url}/f", target, None, HASH)
    assert target.read_bytes() == DATA


def test_an_encoder_by_its_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    hint = HubFile("some/repo", "folder/model.safetensors", len(DATA), HASH)
    monkeypatch.setitem(ENCODERS, "test", EncoderSpec("test", 32, 8, 64, 3, 2, 32, pretrained_hint=hint))
    found = download_encoder("test", tmp_path / "clip_vision")
    assert found == tmp_path / "clip_vision" / "test.safetensors"
    assert found.read_bytes() == DATA
    assert server.seen[0][0] == "/some/repo/resolve/main/folder/model.safetensors"
    with pytest.raises(DownloadError, match="ViT-H-14"):
        download_encoder("unheard of", tmp_path)


def test_hub_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_url("a/b", "c d.bin") == "https://huggingface.co/a/b/resolve/main/c%20d.bin"


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch, server: Server) -> str:
    """Of files that the server has: DATA, under the names and hashes of a pack."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.stated_hash = HASH
    monkeypatch.setitem(face_packs.RECOGNISERS, "buffalo_l", ("w600k_r50.onnx", HASH))
    monkeypatch.setattr(face_fetch, "DETECTOR_HASH", HASH)
    monkeypatch.setattr(face_fetch, "_DETECTOR_SIZE", len(DATA))
    monkeypatch.setitem(face_fetch._SOURCES, "buffalo_l", ("owner/repo", "models/", "det_10g.onnx", len(DATA)))
    return "buffalo_l"


def test_face_models_of_a_pack(tmp_path: Path, server: Server, pack: str) -> None:
    reports: list[tuple[int, int | None]] = []
    folder = face_fetch.download_pack(pack, tmp_path / "models", lambda done, total: reports.append((done, total)))
    assert sorted(path.name for path in folder.iterdir()) == ["det_10g.onnx", "w600k_r50.onnx"]
    assert all(path.read_bytes() == DATA for path in folder.iterdir())
    asked = [path for path, _ in server.seen if "/resolve/" in path]
    assert asked == ["/owner/repo/resolve/main/models/det_10g.onnx", "/owner/repo/resolve/main/models/w600k_r50.onnx"]
    assert reports[-1] == (2 * len(DATA), 2 * len(DATA))
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    face_fetch.download_pack(pack, tmp_path / "models")
    assert len([path for path, _ in server.seen if "/resolve/" in path]) == 2  # what is there stays


def test_a_face_model_with_another_hash_is_refused(tmp_path: Path, server: Server, pack: str) -> None:
    face_packs.RECOGNISERS["buffalo_l"] = ("w600k_r50.onnx", "0" * 64)
    with pytest.raises(DownloadError, match=r"w600k_r50\.onnx"):
        face_fetch.download_pack(pack, tmp_path / "models")
    assert not (tmp_path / "models" / pack / "w600k_r50.onnx").exists()
    with pytest.raises(DownloadError, match="no download is known for the face models 'x'"):
        face_fetch.download_pack("x", tmp_path)


def test_every_pack_has_a_source() -> None:
    assert set(face_fetch._SOURCES) == set(face_packs.RECOGNISERS)
