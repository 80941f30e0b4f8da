"""Fetches weight files: resumable, verified, and never partial under the final name. Standard library only.

The bytes go to ``NAME.part``; a cut connection leaves it there and the next call goes on from it. Only
when size and SHA-256 agree is it renamed to its final name.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DownloadError

HUB = "https://huggingface.co"
CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4

Progress = Callable[[int, "int | None"], None]  # bytes there, bytes in all if known; what it raises cancels


@dataclass(frozen=True)
class Expected:
    """What the whole file must be; None is not known."""

    size: int | None = None
    sha256: str | None = None

    def or_else(self, other: Expected) -> Expected:
        """This, completed by ``other``."""
        return Expected(self.size if self.size is not None else other.size, self.sha256 or other.sha256)


class _Cut(Exception):
    """The connection ended early, or the server is busy: worth another attempt."""


def hub_url(repo: str, file: str, revision: str = "main") -> str:
    """Address of a file on the hub, or on the mirror that HF_ENDPOINT names."""
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return f"{endpoint}/{repo}/resolve/{revision}/{urllib.parse.quote(file)}"


def download_encoder(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """Fetches a registered encoder into ``folder``, which is made. Raises DownloadError."""
    from ..encoders.spec import ENCODERS

    spec = ENCODERS.get(name)
    hint = spec.pretrained_hint if spec else None
    if hint is None:
        known = ", ".join(n for n, s in ENCODERS.items() if s.pretrained_hint)
        raise DownloadError(f"no download is known for the encoder {name!r}; there is one for {known}")
    target = folder / f"{name}{Path(hint.file).suffix}"
    return download(hub_url(hint.repo, hint.file), target, hint.size, hint.sha256, progress)


def download(
    url: str,
    target: Path,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    attempts: int = ATTEMPTS,
) -> Path:
    """Fetches ``url`` to ``target`` and returns it. An existing ``target`` is kept when it is right.

    ``size`` in bytes and ``sha256`` in hex are checked; where they are None the server's own statement is
    (the hub makes one). A file whose hash nobody states is refused. Raises DownloadError; what was
    fetched stays in ``target``.part for the next call, unless it proved wrong.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url!r} cannot be fetched; expected an address that begins with https://")
    expected = Expected(size, sha256.lower() if sha256 else None)
    with _alone(target):
        if target.is_file() and expected.sha256 and _sha256(target) == expected.sha256:
            return target
        with _disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _Fetch(url, target, expected, progress).run(attempts)
    return target


class _Fetch:
    """One file on its way."""

    def __init__(self, url: str, target: Path, expected: Expected, progress: Progress | None) -> None:
        self.url, self.target, self.expected = url, target, expected
        self.part = target.with_name(f"{target.name}.part")
        self.progress: Progress = progress or (lambda _done, _total: None)

    def run(self, attempts: int) -> None:
        """Attempts until the file is whole and right."""
        resumed = self._have() > 0
        for attempt in range(attempts):
            try:
                self._attempt()
                break
            except _Cut as cut:
                if attempt == attempts - 1:
                    raise DownloadError(self._cut_message(str(cut))) from cut
                time.sleep(min(2.0**attempt - 1, 8.0))
        problem = self._problem()
        if problem:
            self.part.unlink()
        if problem and resumed:
            self.run(attempts)  # what an earlier call had left was wrong: once more from the start
        elif problem:
            raise DownloadError(problem)
        else:
            os.replace(self.part, self.target)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self) -> None:
        """Asks for what is missing and appends it. Raises _Cut when it does not all come."""
        start = self._have()
        if self.expected.size is not None and start > self.expected.size:
            self.part.unlink()
            start = 0
        if start and start == self.expected.size and self.expected.sha256:
            return  # only the verification is left
        with self._open(start) as response:
            if response is None:  # nothing is missing
                return
            start = self._start(response, start)
            total = self._total(response, start)
            self._check_space(total, start)
            self._receive(response, start, total)

    @contextmanager
    def _open(self, start: int) -> Iterator[http.client.HTTPResponse | None]:
        headers = {"User-Agent": f"ip-adapter-webui/{__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        stated = _StatedByRedirect()
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.build_opener(stated).open(request, timeout=TIMEOUT) as response:
                self.expected = self.expected.or_else(stated.expected).or_else(_stated(response.headers))
                yield response
        except urllib.error.HTTPError as error:
            self.expected = self.expected.or_else(stated.expected)
            self._refused(error, start)
            yield None
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            raise _Cut(str(getattr(error, "reason", error)) or type(error).__name__) from error

    def _refused(self, error: urllib.error.HTTPError, start: int) -> None:
        """Returns when nothing is missing (416), raises _Cut where another attempt may help."""
        if error.code == 416 and start:
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if whole and int(whole[1]) == start:
                self.expected = self.expected.or_else(_stated(error.headers)).or_else(Expected(size=start))
                return
            self.part.unlink()
            raise _Cut("the server has another file than the one begun")
        if error.code >= 500 or error.code in (408, 429):
            raise _Cut(f"the server answered {error.code} {error.reason}")
        why = {401: "it needs a login", 403: "access is refused", 404: "there is no such file"}
        reason = why.get(error.code, "the server refused it")
        raise DownloadError(
            f"{self.target.name}: cannot be fetched from {self.url}: {error.code} {error.reason}, {reason}. "
            "Check the address, or fetch it by hand",
            url=self.url,
        )

    def _start(self, response: http.client.HTTPResponse, asked: int) -> int:
        """Where the answer begins: at what was asked, or at 0 from a server that cannot resume."""
        if response.status != 206:
            return 0
        place = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != asked:
            self.part.unlink(missing_ok=True)
            raise _Cut(f"asked for bytes from {asked}, got {response.headers.get('Content-Range')!r}")
        return asked

    def _total(self, response: http.client.HTTPResponse, start: int) -> int | None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if total is not None and self.expected.size is not None and total != self.expected.size:
            raise DownloadError(
                f"{self.target.name}: the server offers {total} bytes, expected {self.expected.size}; "
                f"{self.url} is not the right file"
            )
        self.expected = self.expected.or_else(Expected(size=total))
        return self.expected.size

    def _check_space(self, total: int | None, start: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        missing = (total or 0) - start
        if missing > free:
            raise DownloadError(
                _no_space(self.target, f"{missing / 1e9:.2f} GB are needed, {free / 1e9:.2f} are free")
            )

    def _receive(self, response: http.client.HTTPResponse, start: int, total: int | None) -> None:
        done = start
        with self.part.open("ab" if start else "wb") as file:
            self.progress(done, total)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                self.progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done < total:
            raise _Cut(f"{done} of {total} bytes came")

    def _problem(self) -> str:
        """Why what came cannot be used, or nothing when size and hash agree."""
        if self.expected.sha256 is None:
            return (
                f"{self.target.name}: neither you nor the server at {self.url} states its SHA-256, so it "
                "cannot be verified; fetch it by hand from a place that you trust"
            )
        found = Expected(self._have(), _sha256(self.part))
        if found == self.expected:
            return ""
        return (
            f"{self.target.name}: {found.size} bytes with SHA-256 {found.sha256} came from {self.url}, "
            f"expected {self.expected.size} with {self.expected.sha256}; it was thrown away. Try again later"
        )

    def _cut_message(self, reason: str) -> str:
        return (
            f"{self.target.name}: the connection to {urllib.parse.urlsplit(self.url).netloc} failed "
            f"({reason}); {self._have()} bytes are kept in {self.part.name}, try again to go on from there"
        )


class _StatedByRedirect(urllib.request.HTTPRedirectHandler):
    """Remembers what the hub states of a file before it sends one on to its store."""

    def __init__(self) -> None:
        self.expected = Expected()

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.expected = self.expected.or_else(_stated(headers))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _stated(headers: Any) -> Expected:
    """Size and SHA-256 as the hub states them: X-Linked-Size, X-Linked-ETag."""
    size = headers.get("X-Linked-Size", "")
    tag = headers.get("X-Linked-ETag", "").removeprefix("W/").strip('"').lower()
    sha256 = tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None
    return Expected(int(size) if size.isdigit() else None, sha256)


_busy: set[Path] = set()
_busy_lock = threading.Lock()


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One download to a target at a time."""
    key = Path(os.path.abspath(target))
    with _busy_lock:
        if key in _busy:
            raise DownloadError(f"{target.name} is being downloaded already; wait until that is done")
        _busy.add(key)
    try:
        yield
    finally:
        with _busy_lock:
            _busy.discard(key)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(_no_space(target, error.strerror or "disk full")) from error
        raise DownloadError(f"{target.name}: cannot be written to {target.parent}: {error}") from error


def _no_space(target: Path, reason: str) -> str:
    return f"{target.name}: no space in {target.parent} ({reason}); free some and try again, it then goes on"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
