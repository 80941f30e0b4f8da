"""PNG files without the parts that Pillow fails on and no picture needs: text, and damaged optional chunks.

Pillow refuses the whole file for a text or a colour profile that unpacks to more than 1 MB, and for a wrong
checksum in any chunk. Node editors write such texts, calibrated screens such profiles. Pillow's bounds are
globals of the process, so the chunks are taken out here instead (PNG specification, third edition, section 5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from ..errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE = 16 * 2**20  # bytes of an unpacked colour profile
MAX_TEXT = 2**20  # bytes of an unpacked text that may say which side is up; Pillow's bound
_PARTS = {b"IHDR": "header", b"PLTE": "palette"}  # without which nothing can be shown
# Optional chunks that change what is seen: transparency and orientation. Texts count by their keyword.
_KEPT = {b"tRNS", b"eXIf"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_KEYWORDS = {b"Raw profile type exif", b"XML:com.adobe.xmp"}


def cleaned(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG file with what decides its pixels only, and its unpacked colour profile or None.

    Optional chunks with a wrong checksum are left out, as libpng does; frames after the first are too. A file
    that is cut short stays so. Raises ImageError for a damaged header or palette and for a profile beyond
    MAX_PROFILE.
    """
    kept: list[bytes | memoryview] = [SIGNATURE]
    profile: bytes | None = None
    seen: set[bytes] = set()
    for kind, content, whole, good in _chunks(data):
        if kind in (b"IDAT", b"IEND", b""):
            kept.append(whole)
        elif kind in _PARTS:
            if not good:
                raise ImageError(
                    f"the PNG's {_PARTS[kind]} ({kind.decode()}) is damaged: its checksum is wrong; save it again"
                )
            kept.append(whole)
        elif good and kind == b"iCCP":
            profile = profile or _profile(bytes(content))
        elif good and (kind in _KEPT or (kind in _TEXTS and _tells_orientation(kind, content, seen))):
            kept.append(whole)
    return b"".join(kept), profile


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview, bool]]:
    """(kind, content, whole chunk, whether the checksum is right). What is left of a file that is cut short
    or damaged comes last, with the kind empty."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + size
        if end > len(data) or not kind.isalpha():
            break
        content, (checksum,) = view[at + 8 : end - 4], struct.unpack_from(">I", data, end - 4)
        # Pixels have a checksum of their own (zlib's), and Pillow does not look at this one.
        good = kind == b"IDAT" or zlib.crc32(content, zlib.crc32(kind)) == checksum
        yield kind, content, view[at:end], good
        at = end
        if kind == b"IEND":
            return
    yield b"", view[at:], view[at:], False


def _profile(content: bytes) -> bytes | None:
    """The unpacked profile of an iCCP chunk; None of one that cannot be unpacked, which Pillow ignores too."""
    _, _, rest = content.partition(b"\0")
    try:
        unpack = zlib.decompressobj()
        profile = unpack.decompress(rest[1:], MAX_PROFILE)
    except zlib.error:
        return None
    if unpack.unconsumed_tail:
        raise ImageError(
            f"the PNG's colour profile (iCCP) unpacks to more than {MAX_PROFILE // 2**20} MB; save it without, as sRGB"
        )
    return profile


def _tells_orientation(kind: bytes, content: memoryview, seen: set[bytes]) -> bool:
    """Whether a text is the first of those from which Pillow reads the orientation, and within Pillow's bound."""
    keyword, _, rest = bytes(content).partition(b"\0")
    if keyword not in _KEYWORDS or keyword in seen or len(rest) > MAX_TEXT:
        return False
    packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if packed and kind == b"iTXt":  # compression flag and method, language, translated keyword
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    if packed:
        unpack = zlib.decompressobj()
        try:
            unpack.decompress(rest, MAX_TEXT)
        except zlib.error:
            return False
        if unpack.unconsumed_tail:
            return False
    seen.add(keyword)
    return True
