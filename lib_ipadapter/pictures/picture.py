"""A picture that is decoded when it is needed, and named by its content."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from PIL import Image

from ..cache import LRU, Cache
from ..errors import ImageError, UnitError
from . import images

Fetch = Callable[[str], bytes]
Allow = Callable[[Image.Image], None]
Load = Callable[[Any], Image.Image]
_MAX_IDS = 4096
_MAX_TEXTS = 32 << 20  # bytes of base64 whose hash is known: nine photos of 12 megapixels
_ENTRY = 300  # bytes that the cache itself needs for one


class Pictures:
    """Turns what a unit gives for pictures into Pictures.

    Remembers the content id of each file (by path, time and size) and of each text (by its hash), so that a known one
    is not decoded for it; of the last texts also the hash, so that the tiles of a job do not compute it again.
    fetch: returns the bytes behind a URL; without it, URLs are refused. memory: bytes that such texts may take; never
    more than 32 MB.
    """

    def __init__(self, fetch: Fetch | None = None, memory: Callable[[], int] = lambda: _MAX_TEXTS) -> None:
        self.fetch = fetch
        self._ids: LRU[str] = LRU(lambda: _MAX_IDS)
        self._digests: Cache[tuple[str, bytes]] = Cache(
            lambda: min(_MAX_TEXTS, memory()), lambda entry: sys.getsizeof(entry[0]) + _ENTRY
        )
        self.decoded = 0  # pictures, so far

    def reference(self, value: Any, field: str, allow: Allow = lambda image: None) -> Picture:
        """value: as images.load takes it, or a URL; field: names it in errors; allow: called with it once it is
        decoded. Raises ImageError for a URL that cannot be fetched."""
        return Picture(value, field, _allowed(images.load_reference, allow), self)

    def mask(self, value: Any, field: str, allow: Allow = lambda image: None) -> Picture:
        """The same of a mask."""
        return Picture(value, field, _allowed(images.load_mask, allow), self)

    def reference_mask(self, value: Any, field: str, allow: Allow = lambda image: None) -> Picture:
        """The same of a mask that must not be black all over; decoding it raises UnitError."""

        def white_somewhere(value: Any) -> Image.Image:
            mask = images.load_mask(value)
            if max(high for _, high in mask.getextrema()) <= 4:  # what lossy formats make of black
                expected = "one that is white where the reference counts"
                raise UnitError(field, "a reference mask that is black all over", expected)
            return mask

        return Picture(value, field, _allowed(white_somewhere, allow), self)

    def id_of(self, picture: Picture) -> str:
        """The content id of a picture by its source; decodes one that is not known."""
        return self._ids.get(picture.source, lambda: images.content_hash(picture.image()))

    def knows(self, picture: Picture) -> bool:
        """Whether its content id is known without decoding it."""
        return picture.source is not None and picture.source in self._ids

    def digest(self, text: str) -> bytes:
        """The hash of a text."""
        return self._digests.get(text, lambda: (text, _digest(text.encode("utf-8", "surrogatepass"))))[1]

    def forget(self) -> None:
        """Frees the texts; ids stay, which are small."""
        self._digests.clear()

    def load(self, picture: Picture) -> Image.Image:
        """Decodes it. Raises ImageError."""
        self.decoded += 1
        return picture.load(picture.value)


class Picture:
    """One picture of a unit, RGB once decoded. Made by ``Pictures``."""

    def __init__(self, value: Any, field: str, load: Load, pictures: Pictures) -> None:
        self.field, self.load = field, load
        self._pictures = pictures
        self._image: Image.Image | None = None
        self._id = ""
        with self._named():
            self.value = self._fetched(value)
            self.source = _source(self.value, load.__name__, pictures)

    @property
    def id(self) -> str:
        """16 hex digits: equal for equal pixels. Raises ImageError."""
        if not self._id:
            unnamed = self.source is None
            self._id = images.content_hash(self.image()) if unnamed else self._pictures.id_of(self)
        return self._id

    @property
    def is_known(self) -> bool:
        """Whether the id is known without decoding."""
        return bool(self._id) or self._pictures.knows(self)

    def image(self) -> Image.Image:
        """The decoded picture, kept until ``drop``. Raises ImageError, which names the field."""
        if self._image is None:
            with self._named():
                self._image = self._pictures.load(self)
        return self._image

    def drop(self) -> None:
        """Frees the decoded pixels; they are decoded again if needed."""
        self._image = None

    def _fetched(self, value: Any) -> Any:
        if not (isinstance(value, str) and value.lstrip()[:8].lower().startswith(("http://", "https://"))):
            return value
        return value if self._pictures.fetch is None else self._pictures.fetch(value)

    def _named(self) -> _Named:
        return _Named(self)


class _Named:
    """Errors inside name the picture's field, and its file."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, ImageError):
            return
        value = getattr(self._picture, "value", None)
        if isinstance(value, Path) and value.name not in str(error):
            cause, error = error.__cause__, ImageError(f"{value.name}: {error}")
            error.__cause__ = cause
            error.detail.update(field=self._picture.field)
            raise error
        error.detail.update(field=self._picture.field)


def _allowed(load: Load, allow: Allow) -> Load:
    """``load``, whose pictures ``allow`` may refuse; under its name, which stands in ``Picture.source``."""

    @functools.wraps(load)
    def checked(value: Any) -> Image.Image:
        image = load(value)
        allow(image)
        return image

    return checked


def _source(value: Any, how: str, pictures: Pictures) -> Hashable:
    """Equal sources decode to equal pictures; None where only the pixels tell."""
    if isinstance(value, Path):
        try:
            stat = value.stat()
        except OSError:
            return None
        return "file", str(value), stat.st_mtime_ns, stat.st_size, how
    if isinstance(value, str):
        return "text", pictures.digest(value), how
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "bytes", _digest(value), how
    return None


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=20).digest()
