"""What a file is that is no picture for us, in words; and the sizes inside an icon."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_PNG, _JPEG = "export it as PNG or JPEG", "save it as PNG or JPEG"
_STARTS = (
    (b"8BPS", f"a Photoshop document; {_PNG}"),
    (b"%PDF", f"a PDF document; {_PNG}"),
    (b"\xff\x0a", f"a JPEG XL picture, which cannot be read here; {_JPEG}"),
    (b"\0\0\0\x0cJXL ", f"a JPEG XL picture, which cannot be read here; {_JPEG}"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM); give one of its frames as PNG or JPEG"),
    (b"PK\x03\x04", "a zip archive; unpack it and give the picture"),
)
AVIF = (b"avif", b"avis")


def named(data: bytes) -> str | None:
    """What the file is and what to do with it, of kinds that people mistake for pictures that can be read."""
    if data[4:8] == b"ftyp":
        if data[8:12] in AVIF:
            return f"an AVIF picture, for which this Pillow has no decoder; install pillow-avif-plugin, or {_JPEG}"
        return "a video (MP4 or MOV); give one of its frames as PNG or JPEG"
    return next((words for start, words in _STARTS if data.startswith(start)), None)


def icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of the PNG pictures inside an ICO file: they may be larger than the icon's header says."""
    if data[:4] != b"\0\0\1\0" or len(data) < 6:
        return
    (count,) = struct.unpack_from("<H", data, 4)
    for entry in range(min(count, (len(data) - 6) // 16)):
        (at,) = struct.unpack_from("<I", data, 6 + 16 * entry + 12)
        if data[at : at + 4] == b"\x89PNG" and at + 24 <= len(data):
            width, height = struct.unpack_from(">II", data, at + 16)
            yield width, height
