"""The two formats of ``torch.save``: the zip archive of torch 1.6 and later, and the older stream.

Formats: torch/serialization.py, ``_load`` and ``_legacy_load``. A file's tensors stay in it until they are read.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch

from .unpickler import PickleRefused, Storage, StoredTensor, Unpickler, first_line

MAX_PICKLE = 16 << 20  # bytes of the pickle itself, without the tensors
MAX_DIRECTORY = 4 << 20  # bytes of a zip's directory; a tensor takes about 70
MAX_NAME = 1_000  # characters of a tensor's name, joined over all levels
MAX_DEPTH = 8  # levels of dictionaries
MAX_TENSORS = 50_000

_MAGIC = 0x1950A86A20F9469CFC6C  # what the older stream begins with


def unpickled(file: BinaryIO, data: mmap.mmap, inert: frozenset[str] = frozenset()) -> Any:
    """The object in a file that torch wrote, with StoredTensor for its tensors. Raises PickleRefused."""
    return _from_zip(file, data, inert) if data[:2] == b"PK" else _from_stream(data, inert)


class _Blocks:
    """What zipfile reads of a file, and no block of it larger than a directory of torch's can be."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1))
        if len(block) > MAX_DIRECTORY:
            raise PickleRefused(f"its zip directory is larger than {MAX_DIRECTORY >> 20} MB")
        return block


def zip_entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """The directory of a zip. Raises PickleRefused for one that torch did not write, and for TorchScript."""
    blocks: Any = _Blocks(file)
    try:
        entries = zipfile.ZipFile(blocks).infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, ValueError, NotImplementedError, OverflowError,
            EOFError, OSError) as error:  # fmt: skip
        raise PickleRefused(f"its zip archive is damaged or cut off ({first_line(error)})") from None
    for entry in entries:
        parts = entry.filename.casefold().split("/")
        if parts[-1] == "constants.pkl" or "code" in parts[1:-1]:
            raise PickleRefused(
                "a TorchScript archive, which holds a program and not only weights (OpenAI published CLIP so): it is "
                "never run"
            )
    return entries


def pickle_entry(file: BinaryIO, size: int) -> tuple[zipfile.ZipInfo, dict[str, zipfile.ZipInfo]]:
    """The entry ``data.pkl`` of a file of ``size`` bytes, and those beside and below it by name. Raises
    PickleRefused."""
    entries = zip_entries(file)
    names = [entry.filename for entry in entries]
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or len(set(names)) != len(names):
        what = ascii(", ".join(names[:3])[:200])
        raise PickleRefused(f"a zip archive that torch did not write (in it: {what})")
    if sum(entry.file_size for entry in entries) > size:
        raise PickleRefused("a zip bomb: what is in it is larger than the file")
    root = pickles[0].filename[: -len("data.pkl")]
    return pickles[0], {e.filename[len(root) :]: e for e in entries if e.filename.startswith(root)}


def entry_begin(data: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """The first byte of an entry, which must be stored as it is, inside the file. Raises PickleRefused."""
    if entry.flag_bits & 0x41:
        raise PickleRefused("its zip archive is encrypted")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise PickleRefused("its zip archive is compressed, which torch never does; unpack it and zip it without")
    header = data[entry.header_offset : entry.header_offset + 30]
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise PickleRefused("its zip archive is damaged (an entry is not where the directory says)")
    name, extra = struct.unpack("<HH", header[26:])
    begin: int = entry.header_offset + 30 + name + extra
    if begin + entry.file_size > len(data):
        raise PickleRefused("its zip archive is cut off (an entry ends behind the file)")
    return begin


def _from_zip(file: BinaryIO, data: mmap.mmap, inert: frozenset[str]) -> Any:
    entry, beside = pickle_entry(file, len(data))
    order = beside.get("byteorder")
    if order is not None:
        begin = entry_begin(data, order)
        if data[begin : begin + min(order.file_size, 8)] != b"little":
            raise PickleRefused("its numbers are big-endian; save it again on a little-endian machine")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        key, found = _identified(identity)
        if key not in storages:
            record = beside.get(f"data/{key}")
            if record is None or record.file_size < found.bytes:
                raise PickleRefused(f"storage {key[:40]} has fewer bytes than the {found.bytes} that it should have")
            found.begin = entry_begin(data, record)
            storages[key] = found
        return _same(storages[key], found)

    if entry.file_size > MAX_PICKLE:
        raise PickleRefused(f"its pickle has {entry.file_size >> 20} MB, more than {MAX_PICKLE >> 20}")
    begin = entry_begin(data, entry)
    return Unpickler(storage, inert).load(io.BytesIO(data[begin : begin + entry.file_size]))


def _from_stream(data: mmap.mmap, inert: frozenset[str]) -> Any:
    stream = io.BytesIO(data[:MAX_PICKLE])
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        key, found = _identified(identity)
        return _same(storages.setdefault(key, found), found)

    unpickler = Unpickler(storage, inert)
    if unpickler.load(stream) != _MAGIC:
        raise PickleRefused("a pickle that torch did not write")
    unpickler.load(stream)  # the format's version
    system = unpickler.load(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleRefused("its numbers are big-endian; save it again on a little-endian machine")
    content = unpickler.load(stream)
    keys = unpickler.load(stream)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, (str, int)) for key in keys)
        or set(map(str, keys)) != set(storages)
    ):
        raise PickleRefused("the pickle is damaged (its list of storages is not that of its tensors)")
    begin = stream.tell()
    for key in keys:
        block = storages[str(key)]
        count = struct.unpack("<q", data[begin : begin + 8])[0] if begin + 8 <= len(data) else -1
        if count != block.count or begin + 8 + block.bytes > len(data):
            raise PickleRefused("the pickle is damaged or cut off (a storage ends behind the file)")
        block.begin = begin + 8
        begin += 8 + block.bytes
    return content


def _identified(identity: Any) -> tuple[str, Storage]:
    """Key and storage of a persistent id: ("storage", type, key, device, count), and in the stream a view's place."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleRefused("it refers to what is no storage of torch's")
    _, dtype, key, _, count = identity[:5]
    if (
        not isinstance(key, (str, int))
        or not isinstance(dtype, torch.dtype)
        or type(count) is not int
        or not 0 <= count < 1 << 50
    ):
        raise PickleRefused("a storage's type or size is none")
    if identity[5:] not in ((), (None,)):
        raise PickleRefused("it was written by torch before 0.4; save it again with a later one")
    return str(key), Storage(dtype, count)


def _same(known: Storage, found: Storage) -> Storage:
    if (known.dtype, known.count) != (found.dtype, found.count):
        raise PickleRefused("the pickle is damaged (one storage with two sizes)")
    return known


# what was read


def named(content: Any) -> dict[str, StoredTensor]:
    """The tensors of nested dictionaries under dotted names. Raises PickleRefused."""
    found: dict[str, StoredTensor] = {}
    for visited, (name, value) in enumerate(_walk(content, "", MAX_DEPTH)):
        if visited > 4 * MAX_TENSORS or len(found) > MAX_TENSORS:
            raise PickleRefused(f"it holds more than {MAX_TENSORS} tensors")
        if len(name) > MAX_NAME:
            raise PickleRefused(f"a name in it has {len(name)} characters")
        if not name.isprintable():
            raise PickleRefused("a name in it cannot be printed")
        if isinstance(value, StoredTensor):
            if name in found:
                raise PickleRefused(f"two tensors in it are named {name}")
            found[name] = value
    return found


def _walk(content: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, dict) and depth > 1:
            yield from _walk(value, f"{name}.", depth - 1)
