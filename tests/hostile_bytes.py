"""Hand-made bytes of pickles and of the archives that torch saves."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

Kind = Callable[[random.Random, Path, Path], None]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    KINDS[make.__name__.replace("_", " ")] = make
    return make


# bytes of pickles


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return (b"\x8a" + bytes([len(data)]) if len(data) < 256 else b"\x8b" + struct.pack("<I", len(data))) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def tensor(key: str = "0", count: int = 4, offset: int = 0, shape: tuple = (4,), stride: tuple = (1,),
           hooks: bytes = name("collections", "OrderedDict") + b")R", kind: str = "FloatStorage") -> bytes:  # fmt: skip
    storage = group(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + b"Q"
    sizes = [group(*(number(n) for n in values)) for values in (shape, stride)]
    args = group(storage, number(offset), *sizes, b"\x89", hooks)
    return name("torch._utils", "_rebuild_tensor_v2") + args + b"R"


def items(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def archive(pickle: bytes, storages: dict[str, bytes] | None = None, root: str = "archive") -> bytes:
    """As torch.save zips it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(f"{root}/data.pkl", b"\x80\x02" + pickle + b".")
        for key, data in (storages if storages is not None else {"0": bytes(16)}).items():
            made.writestr(f"{root}/data/{key}", data)
        made.writestr(f"{root}/version", "3\n")
    return buffer.getvalue()


def stream(
    pickle: bytes, data: bytes = struct.pack("<q", 4) + bytes(16), keys: bytes = b"]X\x01\x00\x00\x000a"
) -> bytes:
    """As torch.save wrote it before 1.6."""
    system = items((text("little_endian"), b"\x88"))
    parts = (number(0x1950A86A20F9469CFC6C), number(1001), system, pickle, keys)
    return b"".join(b"\x80\x02" + part + b"." for part in parts) + data


def either(rng: random.Random, pickle: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    return archive(pickle, storages) if rng.random() < 0.6 else stream(pickle)
