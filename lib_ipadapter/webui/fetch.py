"""Pictures behind URLs, under the WebUI's own options, bounded in bytes and in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import reduce
from typing import Any

from ..errors import ImageError
from ..pictures.images import MAX_BYTES

SECONDS = 30.0  # for a whole picture, however slowly it comes
_CHUNK = 2**16
# Where urllib3 has the socket: of a connection that stays open, and of one that ends with the answer
_SOCKETS = (("connection", "sock"), ("_fp", "fp", "raw", "_sock"))


def is_url(value: Any) -> bool:
    """Whether a picture's text is an address."""
    return isinstance(value, str) and value.lstrip()[:8].lower().startswith(("http://", "https://"))


def data(url: str) -> bytes:
    """The bytes behind a URL; of more than images.MAX_BYTES one more, which images.load then refuses. Raises
    ImageError."""
    from modules import shared
    from modules.api.api import verify_url

    if not shared.opts.api_enable_requests:
        raise ImageError(f"{url[:200]}: the WebUI's option to fetch images from URLs is off; send the image as base64")
    if shared.opts.api_forbid_local_requests and not verify_url(url):
        raise ImageError(
            f"{url[:200]}: the WebUI's options forbid requests to local resources, and this is one, or its host was "
            "not found; send the image as base64"
        )
    return within(url, shared.opts.api_useragent or "", SECONDS)


def within(url: str, agent: str, seconds: float) -> bytes:
    """The bytes behind a URL, in so many seconds in all. Raises ImageError."""
    request = _Request(url, agent, time.monotonic() + seconds)
    # requests bounds only the time between two bytes.
    thread = threading.Thread(target=request.run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        request.abort()
        raise ImageError(f"{url[:200]}: not here after {seconds:g} s; send the image as base64")
    if request.error is not None:
        raise ImageError(f"{url[:200]}: could not be fetched ({request.error})") from request.error
    return bytes(request.data)


class _Request:
    def __init__(self, url: str, agent: str, deadline: float) -> None:
        self.url = url
        self.headers = {"user-agent": agent} if agent else {}
        self.deadline = deadline
        self.data = bytearray()
        self.error: Exception | None = None
        self._response: Any = None

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:  # nothing else sees what a thread raises
            self.error = error

    def _read(self) -> None:
        import requests

        # A redirect could lead where verify_url has not looked.
        given: dict[str, Any] = {"headers": self.headers, "stream": True, "allow_redirects": False}
        with requests.get(self.url, timeout=self.deadline - time.monotonic(), **given) as response:
            self._response = response
            response.raise_for_status()
            if response.is_redirect:
                raise requests.RequestException("a redirect, which is not followed")
            for chunk in response.raw.stream(_CHUNK, decode_content=True):
                self.data += chunk
                if len(self.data) > MAX_BYTES or time.monotonic() > self.deadline:
                    return

    def abort(self) -> None:
        """Ends a read that waits, so that the thread ends too."""
        for path in _SOCKETS:
            with contextlib.suppress(AttributeError, OSError):
                reduce(getattr, path, self._response.raw).shutdown(socket.SHUT_RDWR)
