"""A unit's pictures, decoded and named by their content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import shared
from PIL import Image

from ..errors import ImageError
from ..files.embeds import Encoded
from ..pictures import images
from ..prompts.features import Pictures
from ..prompts.references import Shelf, expanded
from ..unit import Unit
from .infotext import Hashes


@dataclass(frozen=True)
class Picture:
    """A decoded picture, and the hash of its content."""

    image: Any  # RGB; of references, what was Encoded before too
    hash: str


@dataclass(frozen=True)
class Held:
    """A unit, what it names in its place, and all its pictures: the references in their order, what it should not look
    like, and its masks."""

    unit: Unit
    images: Sequence[Picture]
    negative: Sequence[Picture] = ()
    focus: Picture | None = None
    mask: Picture | None = None

    @property
    def encodes(self) -> bool:
        """Whether anything needs an encoder."""
        return bool(self.negative) or any(not isinstance(x.image, Encoded) for x in self.images)

    def pictures(self) -> Pictures:
        """What is encoded, and how."""
        focus = self.focus.image if self.focus else None
        return Pictures([x.image for x in self.images], [x.image for x in self.negative], focus)

    def hashes(self, asked: Unit) -> Hashes:
        """What the infotext keeps, for the unit that was asked for, which may name its references."""
        others: dict[str, str | list[str]] = {}
        if self.negative:
            others["negative"] = [x.hash for x in self.negative]
        others.update((name, x.hash) for name, x in (("focus", self.focus), ("mask", self.mask)) if x)
        known = {id(reference): x.hash for reference, x in zip(self.unit.images, self.images)}
        return Hashes([known.get(id(reference), "") for reference in asked.images], others)


def held_by(unit: Unit, shelf: Shelf) -> Held:
    """Raises ImageError, which names the field, and UnitError and FileError for what is named. Transparent parts are
    white; of masks black, or the mask itself (images.load_mask)."""

    def many(field: str) -> list[Picture]:
        return [
            _picture(ref.image, f"{field}[{i}]", images.load_reference)
            for i, ref in enumerate(getattr(unit, field))
        ]

    def single(field: str) -> Picture | None:
        given = getattr(unit, field)
        return None if given is None else _picture(given, field, images.load_mask)

    unit = expanded(unit, shelf)
    return Held(unit, many("images"), many("negative"), single("focus"), single("mask"))


def _picture(value: Any, where: str, load: Callable[[Any], Image.Image]) -> Picture:
    if isinstance(value, Encoded):
        return Picture(value, value.hash)
    try:
        image = load(_fetch(value) if _is_url(value) else value)
    except ImageError as error:
        if isinstance(value, Path) and value.name not in str(error):
            error = ImageError(f"{value.name}: {error}")
        error.detail.update(field=where)
        raise error from error.__cause__
    return Picture(image, images.content_hash(image))


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:8].lower().startswith(("http://", "https://"))


def _fetch(url: str) -> bytes:
    """The bytes behind a URL, under the WebUI's own options, bounded. Raises ImageError."""
    import requests
    from modules.api.api import verify_url

    if not shared.opts.api_enable_requests:
        raise ImageError(
            f"{url}: the WebUI's option to fetch images from URLs is off; send the image as base64"
        )
    if shared.opts.api_forbid_local_requests and not verify_url(url):
        raise ImageError(
            f"{url}: the WebUI's options forbid requests to local resources; send the image as base64"
        )
    headers = {"user-agent": shared.opts.api_useragent} if shared.opts.api_useragent else {}
    try:
        # A redirect could lead where verify_url has not looked.
        with requests.get(url, timeout=30, headers=headers, stream=True, allow_redirects=False) as response:
            response.raise_for_status()
            data: bytes = response.raw.read(images.MAX_BYTES + 1, decode_content=True)
    except (requests.RequestException, OSError) as error:
        raise ImageError(f"{url}: could not be fetched ({error})") from error
    return data
