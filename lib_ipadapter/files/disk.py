"""Opening files that other people made: only regular files, never blocking, and the commonest mistakes named."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import FileError, UnsafeFile

_SPARSE = 256 << 20  # bytes from which a file with holes is looked for
# First bytes of what people save as a model by mistake, and what to call it
_OTHER_KINDS = {
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x89HDF": "an HDF5 file",
}


def open_regular(path: Path, expected: str = "a file with tensors") -> BinaryIO:
    """Opens a regular file for reading, unbuffered positions included. expected: what it should be, for the message.
    Raises FileError.

    Devices, sockets and FIFOs are refused and cannot block: the type is looked at before and after opening.
    Symbolic links are followed, as people link their models.
    """
    try:
        _require_regular(path, os.stat(path), expected)
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise FileError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    file = os.fdopen(descriptor, "rb")
    try:
        _require_regular(path, os.fstat(descriptor), expected)
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(path: Path, found: os.stat_result, expected: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise UnsafeFile(path, f"this is a folder, expected {expected}")
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFile(path, f"this is a device, socket or pipe, expected {expected}")
    on_disk = getattr(found, "st_blocks", 0) * 512  # 0 where the system does not say
    if found.st_size >= _SPARSE and 0 < on_disk < found.st_size // 16:
        raise UnsafeFile(
            path, f"only {on_disk / 1e6:.1f} MB of its {found.st_size / 1e6:.0f} MB are on the disk, the rest is "
                  "a hole: "
            "a download that was cut off; download it again",
        )  # fmt: skip


def read_text(path: Path, most: int = 2**20) -> str:
    """The UTF-8 text, with or without a BOM, of a regular file of at most so many bytes. Raises FileError."""
    with open_regular(path, "a text file") as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise FileError(path, f"has more than {most} bytes, too many for what it should be")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(path, f"cannot be read as text in UTF-8: {error}") from None


def read_head(path: Path) -> bytes:
    """The first 512 bytes. Raises FileError, and UnsafeFile with a name for what is no tensor file at all."""
    with open_regular(path) as file:
        try:
            head = file.read(512)
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror or error}") from None
    start = head.lstrip().lower()
    if not head:
        raise UnsafeFile(path, "the file is empty; download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsafeFile(path, "this is a web page, not a model: the download went wrong; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UnsafeFile(path, "this is a Git LFS pointer, not the model itself; run git lfs pull or download it")
    for first, kind in _OTHER_KINDS.items():
        if head.startswith(first) and head[8:9] != b"{":
            raise UnsafeFile(path, f"this is {kind}, expected a safetensors file or a pickle of torch")
    return head


def short_hash(path: Path) -> str:
    """The WebUI's short hash of old, of the 64 KiB at 1 MiB: 8 hex digits; "" for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0x100000)
            return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    except OSError:
        return ""


def sha256(path: Path | str) -> str:
    """Hex digest of the whole file. Raises FileError."""
    digest = hashlib.sha256()
    try:
        with open_regular(Path(path)) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()
