"""Fetches a file: resumable, verified, and never partial under its final name.

The bytes go to ``NAME.part``. A cut connection leaves it there, and the next call resumes it. Only when size and
SHA-256 agree is it renamed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from .. import __version__
from ..errors import DownloadError
from .disk import sha256 as hash_of

HUB = "https://huggingface.co"
CHUNK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4

Progress = Callable[[int, "int | None"], None]  # bytes there, bytes in all if known; what it raises cancels
_REFUSED = {
    401: "it needs a login", 403: "access is refused", 404: "there is no such file", 407: "the proxy needs a login",
}  # fmt: skip
_UNUSABLE = "the address that it sends on to, or that of a proxy, cannot be used"
_LOGIN = re.compile(r"""(?<=//)[^\s/'"]*@|[^\s/@'"]*:[^\s/'"]*@""")


class _Cut(Exception):
    """The connection ended early, or the server is busy: worth another attempt."""


def hub_url(repo: str, file: str, revision: str = "main", view: str = "resolve") -> str:
    """Address of a file on the hub, or on the mirror that HF_ENDPOINT names. view: "blob" for the page about it."""
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB
    return f"{endpoint}/{repo}/{view}/{revision}/{quote(file)}"


def size_text(size: int) -> str:
    """Bytes as a download's page has them: 2.5 GB, 191 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.3g} MB"


def download(
    url: str, target: Path, size: int | None = None, sha256: str | None = None, progress: Progress | None = None,
    attempts: int = ATTEMPTS,
) -> Path:  # fmt: skip
    """Fetches ``url`` to ``target`` and returns it. An existing ``target`` is kept when it is right.

    ``size`` in bytes and ``sha256`` in hex are checked; where they are None, what the hub states of the file is. A file
    whose hash nobody states is refused. Raises DownloadError; what was fetched stays in ``target``.part for the next
    call, unless it proved wrong.
    """
    url = url.strip()
    if not re.fullmatch(r"https?://[^/][^\t\r\n]*", url, re.IGNORECASE) or _host(url) is None:
        raise DownloadError(
            f"{url.rpartition('@')[2]!r} cannot be fetched; expected an address that begins with https://"
        )
    with _alone(target), _disk_errors(target):
        if target.is_file() and sha256 and hash_of(target) == sha256.lower():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        _Fetch(url, target, size, sha256 and sha256.lower(), progress).run(attempts)
    return target


class _Fetch:
    """One file on its way. ``size`` and ``sha256`` are None until somebody states them."""

    def __init__(self, url: str, target: Path, size: int | None, sha256: str | None, progress: Progress | None) -> None:
        self.url, self.target, self.size, self.sha256 = url, target, size, sha256
        self.host = _host(url)  # who was asked last: the hub sends downloads on to its store
        self.shown = _without_login(url)
        self.part = target.with_name(f"{target.name}.part")
        self.progress: Progress = progress or (lambda _done, _total: None)

    @property
    def done(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self, attempts: int) -> None:
        """Attempts until the file is whole and right."""
        resumed = self.done > 0
        for attempt in range(attempts):
            try:
                self._attempt()
                break
            except _Cut as cut:
                if attempt == attempts - 1:
                    again = f"{self.done} bytes are kept in {self.part.name}, try again to resume the download"
                    raise DownloadError(
                        f"{self.target.name}: the connection to {self.host} failed ({cut}); "
                        f"{again if self.done else 'try again, or fetch it by hand'}",
                        url=self.shown,
                    ) from cut
                time.sleep(min(2.0**attempt - 1, 8.0))
        problem = self._problem()
        if not problem:
            self.part.replace(self.target)
            return
        self.part.unlink()
        if not resumed:
            raise DownloadError(problem)
        self.run(attempts)  # what an earlier call had left was wrong: once more from the start

    def _attempt(self) -> None:
        """Asks for what is missing and appends it. Raises _Cut when it does not all come."""
        import requests

        if self.size is not None and self.done > self.size:
            self.part.unlink()
        start = self.done
        if start and start == self.size and self.sha256:
            return  # only the verification is left
        headers = {"User-Agent": f"ip-adapter-webui/{__version__}", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._asked(requests, headers) as response:
                self.host = _host(response.url)
                self._note_statements(response)
                start = self._begin(response, start)
                if start >= 0:
                    self._receive(response, start)
        except requests.RequestException as error:
            if error.request:
                self.host = _host(str(error.request.url)) or self.host
            raise _Cut(_why(error)) from error

    def _asked(self, requests: Any, headers: dict[str, str]) -> Any:
        """The answer. Raises _Cut for what requests does not name, and which is not the disk's fault: a lost file of
        certificates, an address that urllib3 refuses."""
        from urllib3.exceptions import HTTPError

        self.host = _host(self.url)
        try:
            return requests.get(self.url, headers=headers, timeout=TIMEOUT, stream=True)
        except requests.RequestException:
            raise
        except (OSError, ValueError, HTTPError) as error:
            raise _Cut(_without_login(str(error))[:200] if isinstance(error, OSError) else _UNUSABLE) from error

    def _note_statements(self, response: Any) -> None:
        """Size and SHA-256, as the hub states them before it redirects to its store."""
        for answer in (*response.history, response):
            size = answer.headers.get("X-Linked-Size", "")
            tag = answer.headers.get("X-Linked-ETag", "").removeprefix("W/").strip('"').lower()
            if self.size is None and size.isdigit():
                self.size = int(size)
            if self.sha256 is None and re.fullmatch(r"[0-9a-f]{64}", tag):
                self.sha256 = tag

    def _begin(self, response: Any, start: int) -> int:
        """Where the answer begins, -1 when nothing is missing. Raises _Cut where another attempt may help."""
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status == 200:
            return 0
        if status == 206 and content_range.startswith(f"bytes {start}-"):
            return start
        if status == 416 and content_range == f"bytes */{start}":
            self.size = self.size or start
            return -1
        if status in (206, 416):
            self.part.unlink(missing_ok=True)
            raise _Cut(f"asked for bytes from {start}, got {content_range!r}")
        if status >= 500 or status in (408, 429):
            raise _Cut(f"the server answered {status} {response.reason}")
        by = f" by {self.host}, to which that sends on" if response.history else ""
        raise DownloadError(
            f"{self.target.name}: cannot be fetched from {self.shown}: {status} {response.reason}{by}, "
            f"{_REFUSED.get(status, 'the server refused it')}. Check the address, or fetch it by hand",
            url=self.shown,
        )

    def _receive(self, response: Any, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else self.size
        self.size = total if self.size is None else self.size
        if total != self.size:
            raise DownloadError(
                f"{self.target.name}: the server offers {total} bytes, expected {self.size}; {self.shown} is "
                "not the right file"
            )
        missing, free = (total or 0) - start, shutil.disk_usage(self.target.parent).free
        if missing > free:
            raise DownloadError(_no_space(self.target, f"{missing / 1e9:.2f} GB are needed, {free / 1e9:.2f} are free"))
        with self.part.open("ab" if start else "wb") as file:
            self.progress(start, total)
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                start += len(chunk)
                self.progress(start, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and start < total:
            raise _Cut(f"{start} of {total} bytes came")

    def _problem(self) -> str:
        """Why what came cannot be used, or nothing when size and hash agree."""
        if self.sha256 is None:
            return (
                f"{self.target.name}: neither you nor the server at {self.shown} states its SHA-256, so it cannot be "
                "verified; fetch it by hand from a place that you trust"
            )
        size, found = self.done, hash_of(self.part)
        if (size, found) == (self.size, self.sha256):
            return ""
        return (
            f"{self.target.name}: {size} bytes with SHA-256 {found} came from {self.shown}, expected {self.size} with "
            f"{self.sha256}; it was thrown away. Try again later"
        )


def _host(url: str) -> str | None:
    """An address's host and port, without a login; None where it has none, or a port that is none."""
    try:
        parts = urlsplit(url)
        return parts.netloc.rpartition("@")[2] if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _without_login(text: str) -> str:
    """A text without the names and passwords of the addresses in it."""
    return _LOGIN.sub("", text)


def _why(error: Exception) -> str:
    """Why nothing more comes, in a few words: requests' own are its objects and their places in memory."""
    from requests import exceptions
    from urllib3 import exceptions as below

    text, inner = str(error), error.args[0] if error.args else None
    if isinstance(error, ValueError):  # an address that requests refuses
        socks = "the proxy of this computer is a SOCKS proxy, for which the Python package PySocks is missing"
        return socks if "SOCKS" in text else _UNUSABLE
    if isinstance(error, exceptions.Timeout) or isinstance(inner, below.ReadTimeoutError):
        return f"nothing came for {TIMEOUT:.0f} s"
    if isinstance(error, exceptions.ProxyError):
        said = re.search(r"Tunnel connection failed: (\d+ [\w ]+)", text)
        return "the proxy of this computer cannot be used" + (f": it answered {said[1].rstrip()}" if said else "")
    if isinstance(error, exceptions.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
            return "its certificate is not accepted"
        said = re.search(r"\] ([^()\]]+) \(_ssl", text)  # OpenSSL's own words
        return "no secure connection is made" + (f": {said[1]}" if said else "")
    if isinstance(error, exceptions.ChunkedEncodingError) or isinstance(inner, below.ProtocolError):
        return "it was cut"
    if isinstance(error, exceptions.ContentDecodingError):
        return "what came cannot be decoded"
    if isinstance(error, exceptions.ConnectionError):
        return "it is not reached: this computer may be offline, or the server down"
    return _without_login(text)[:200]


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
    return f"{target.name}: no space in {target.parent} ({reason}); free some and try again, it then resumes"
