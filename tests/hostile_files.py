"""Files that somebody made to do harm, one function a kind: ``KINDS[name](random, path, trap)`` writes one to ``path``.

``trap`` is a file that any code in them would write.
"""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

from tests.hostile_bytes import archive, either, group, items, kind, name, number, stream, tensor, text
from tests.synthetic import adapter_tensors, nested

# good files, and what goes wrong with them on the way


def good(rng: random.Random) -> bytes:
    flat = adapter_tensors(
        rng.choice(["base", "plus", "full"]), context=16, widths=(8, 16, 8), feature_width=12, dim=16, depth=1
    )
    way = rng.randrange(4)
    if way == 0:
        return save(flat)
    buffer = io.BytesIO()
    torch.save(nested(flat), buffer, _use_new_zipfile_serialization=way != 2, pickle_protocol=4 if way == 3 else 2)
    return buffer.getvalue()


@kind
def truncated(rng, path, trap):
    data = good(rng)
    path.write_bytes(data[: rng.randrange(len(data))])


@kind
def flipped_bits(rng, path, trap):
    data = bytearray(good(rng))
    near = rng.choice([len(data), 400, 4000])
    for _ in range(rng.choice([1, 3, 30, 300])):
        at = rng.randrange(min(near, len(data)))
        data[at if rng.random() < 0.5 else len(data) - 1 - at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@kind
def moved_blocks(rng, path, trap):
    data = good(rng)
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    path.write_bytes(rng.choice([data[:a] + data[b:], data[:b] + data[a:], data[a:] + data[:a],
    data[:a] + bytes(b - a) + data[b:],
                                 data + good(rng)]))  # fmt: skip


@kind
def noise(rng, path, trap):
    start = rng.choice([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", struct.pack("<Q", 20) + b"{", b"<html>", b"GGUF",
    b"\x1f\x8b",
                        b"version https://git-lfs", b"\x89PNG", b"PK\x05\x06"])  # fmt: skip
    path.write_bytes(start + rng.randbytes(rng.choice([0, 1, 30, 3000])))


# safetensors headers that lie


def entry(**changes: object) -> dict:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


@kind
def header_lies(rng, path, trap):
    big = rng.choice([2**31, 2**40, 2**62, 2**63, 2**64, 10**30])
    header: dict = {"image_proj.a": entry(), "__metadata__": {"format": "pt"}}
    change: dict = rng.choice([
        {"image_proj.a": entry(shape=[big])}, {"image_proj.a": entry(shape=[big, 0])},
        {"image_proj.a": entry(shape=[2] * 70)},
        {"image_proj.a": entry(data_offsets=[0, big])}, {"image_proj.a": entry(data_offsets=[16, 0])},
        {"a": entry(shape=[-4])},
        {"image_proj.a": entry(data_offsets=[-16, 0])},
        {"image_proj.a": entry(dtype=rng.choice(["F99", "I4", "", 5, None,
        ["F32"]]))},
        {"image_proj.a": entry(shape=rng.choice([None, "4", [None], [4.5], {"0": 4}, [[4]]]))}, {"b": entry()},
        {"b": 5},
        {"image_proj.a": entry(data_offsets=rng.choice([None, [], [0], [0, 8, 16], ["0", "16"], [0.0, 16.0]]))},
        {"__metadata__": rng.choice([None, 5, [], {"a": 5}, {"a": None}, {"a": {"b": "c"}}])}, {"": entry()},
        {"\x00": entry()},
        {"b": entry(data_offsets=[8, 24])}, {"b": entry(data_offsets=[32, 48])}, {"image_proj.a": entry(dtype="F8_E4M3",
        shape=[16])},
        {"image_proj.a": entry(dtype="BOOL", shape=[16])}, {"image_proj.a": entry(extra=1)}, {"image_proj.a": {}},
    ])  # fmt: skip
    data = json.dumps(header | change).encode()
    length = rng.choice([len(data), len(data), len(data), len(data) - 1, len(data) + 1, big % 2**64, 0])
    path.write_bytes(struct.pack("<Q", length) + data + bytes(rng.choice([16, 16, 0, 15, 17])))


@kind
def strange_headers(rng, path, trap):
    a = b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    data = rng.choice([
        b"{" + a + b"," + a + b"}", b"{" * 9_000, b"{" + b"[" * 9_000, b'{"a":' * 2_000,
        b"{" + a[:-1] + b',"dtype":"F16"}}',
        b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"{}", b"{}" + b" " * 10_000,
        b"{" + a + b"}\x00\x00",
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(2_000)) + b"}",
        b'{"a":{"dtype":"U8","shape":[' + b"1," * 3_000 + b'16],"data_offsets":[0,16]}}', b"{'a': 1}",
        b"{" + rng.randbytes(200),
        json.dumps({"__metadata__": {"x": "y" * 50_000}}).encode()[:-1] + b"," + a + b"}",
    ])  # fmt: skip
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(16))


@kind
def a_huge_header(rng, path, trap):
    with path.open("wb") as file:
        file.write(struct.pack("<Q", rng.choice([17 << 20, 100 << 20])) + b'{"a":')
        file.truncate(rng.choice([20 << 20, 200 << 20]))


# pickles that carry code


CALLS = [
    ("posix", "system"), ("os", "system"), ("nt", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins",
    "exec"),
    ("__builtin__", "getattr"), ("builtins", "open"), ("builtins", "__import__"), ("pathlib", "Path.touch"),
    ("torch", "load"),
    ("torch.serialization", "load"), ("torch.jit", "load"), ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("numpy", "load"), ("runpy", "run_path"), ("importlib", "import_module"), ("shutil", "rmtree"),
    ("torch", "FloatTensor"),
    ("torch._utils", "_rebuild_sparse_tensor"), ("collections", "OrderedDict.fromkeys"),
    ("torch._utils", "__builtins__"),
    ("torch.nn.parameter", "Parameter.__init__"), ("collections", "namedtuple"), ("torch", "Size.__class__"),
    ("timeit", "timeit"), ("code", "interact"), ("pty", "spawn"), ("webbrowser", "open"), ("antigravity", "x"),
    ("this", "s"),
]  # fmt: skip


@kind
def code(rng, path, trap):
    module, attribute = rng.choice(CALLS)
    script = f"open({str(trap)!r}, 'w')" if "eval" in attribute or "exec" in attribute else f"touch {trap}"
    argument = text(script)
    call = name(module, attribute)
    stacked = (
        b"\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(attribute)])
        + attribute.encode()
        + b"\x93"
    )
    run = rng.choice([
        call + argument + b"\x85R", stacked + argument + b"\x85R",
        b"(" + argument + f"i{module}\n{attribute}\n".encode(),
        b"(" + call + argument + b"o", call + argument + b"\x85\x81", call + argument + b"\x85}\x92",
        call + b")R" + argument + b"b",
        b"\x82\x01", b"\x83\x01\x00", f"P{module}\n".encode(), call + argument + b"\x85Q", b"\x97", b"\x98",
        name("torch._tensor", "_rebuild_from_type_v2") + group(call, b"N", argument + b"\x85", b"N") + b"R",
        name("torch.nn.parameter", "Parameter") + call + argument + b"\x85R\x85\x81", call, stacked,
    ])  # fmt: skip
    pickle = rng.choice([
        run, items((text("image_proj"), run)), items((run, tensor())), items((text("a"), tensor(hooks=run))),
        b"]" + run + b"a",
        items((text("a"), tensor())) + run + b"b", name("collections", "OrderedDict") + run + b"\x85R",
        run + b"0" + items(),
    ])  # fmt: skip
    path.write_bytes(rng.choice([either(rng, pickle), b"\x80\x02" + pickle + b"."]))


class _Script(torch.nn.Module):
    """Writes a file as soon as it is loaded; the name of the file is patched in afterwards."""

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        torch.save(state[0], "THE TRAP")
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@functools.cache
def _torchscript() -> dict[str, bytes]:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(_Script()), buffer)
    with zipfile.ZipFile(buffer) as made:
        return {entry: made.read(entry) for entry in made.namelist() if not entry.endswith(".debug_pkl")}


def torchscript(trap: Path) -> dict[str, bytes]:
    """The entries of a TorchScript archive that writes ``trap`` when it is loaded (A1)."""
    path = json.dumps(str(trap)).encode()
    return {entry: data.replace(b'"THE TRAP"', path) for entry, data in _torchscript().items()}


def write_torchscript(path: Path, trap: Path, root: str = "archive", more: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for entry, data in {**torchscript(trap), **(more or {})}.items():
            made.writestr(f"{root}/{entry.partition('/')[2]}" if entry not in (more or {}) else entry, data)
    return path


@kind
def a_torchscript_archive(rng, path, trap):
    adapter = archive(items((text("image_proj"), tensor())))
    with zipfile.ZipFile(io.BytesIO(adapter)) as made:
        more = {entry: made.read(entry) for entry in made.namelist()} if rng.random() < 0.4 else None
    write_torchscript(path, trap, rng.choice(["archive", "Archive", "code", "x/y"]), more)
    if rng.random() < 0.2:
        path.write_bytes(path.read_bytes().replace(b"constants.pkl", b"Constants.PKL"))


# pickles that take memory or time


@kind
def heavy_pickles(rng, path, trap):
    many = 200_000
    doubled = b"(" + text("x") + b"tq\x00" + b"".join(b"(h\x00h\x00tq\x00" for _ in range(60))
    shared = (
        items((text("t"), tensor()))
        + b"q\x00"
        + b"".join(b"}(" + b"".join(text(str(n)) + b"h\x00" for n in range(9)) + b"uq\x00" for _ in range(30))
    )
    pickle = rng.choice([
        b"]" * many, b"(" * many, b"}" * many, b"]q\x00h\x00a", b"}q\x00" + text("a") + b"h\x00s", b"(]" * many,
        items((doubled, tensor())), shared, doubled, b"".join(text("a" * 50) + b"r" + struct.pack("<I",
        n) for n in range(many // 10)),
        items((text("k" * 2_000_000), tensor())), items(*((text(str(n)), tensor()) for n in range(2_000))),
        b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f",
        b"L" + b"9" * 400_000 + b"L\n",
        b"I" + b"9" * 400_000 + b"\n", b"r\xff\xff\xff\xff", b"F" + b"1" * 400_000 + b"\n", b"]" + b"(]t" * 30_000,
        items((number(2**1000), tensor())), items((text("a\ud800".encode("utf-8", "surrogatepass")), tensor())),
        items((text("a\x1b[2J\n"), tensor())),
        items((text("a.b"), tensor()), (text("a"), items((text("b"), tensor())))),
        tensor() + text("x") + number(1) + b"s", tensor() + b")" + b"G\x3f\xf0" + bytes(6) + b"s", b"0" * many, b"a",
        b"s",
        b"t", b".",
        name("torch", "FloatStorage") + number(10**10) + b"\x85R",
        name("torch", "FloatTensor") + number(10**10) + b"\x85R",
    ])  # fmt: skip
    path.write_bytes(either(rng, pickle))


@kind
def tensors_that_lie(rng, path, trap):
    big = rng.choice([5, 1000, 2**31, 2**40, 2**62, 2**63, 2**70, -1])
    made = rng.choice([
        tensor(shape=(big,)), tensor(shape=(big,), stride=(0,)), tensor(shape=(2**20, 2**20), stride=(0, 0)),
        tensor(offset=big),
        tensor(stride=(big,)), tensor(count=big), tensor(count=big, shape=(big,)),
        tensor(shape=(0, big), stride=(1, 1)),
        tensor(shape=(1,) * 40, stride=(1,) * 40), tensor(shape=(4,), stride=()), tensor(shape=(), stride=()),
        tensor(key="1"),
        tensor(key="../../../../etc/passwd"), tensor(key="/etc/passwd"), tensor(kind="ByteStorage"),
        tensor(kind="QInt8Storage"),
        tensor(kind="ComplexDoubleStorage", count=1, shape=(1,)), tensor(kind="BoolStorage"), tensor(kind="LongStorage",
        count=2, shape=(2,)),
        name("torch._utils", "_rebuild_tensor_v2") + b")R",
        name("torch._utils", "_rebuild_parameter") + text("x") + b"\x85R",
        tensor().replace(text("storage"), text("module")), tensor().replace(text("cpu"), text("cuda:99")),
        name("torch._utils", "_rebuild_tensor_v2") + group(text("x"), number(0), b")", b")", b"\x89", b"}") + b"R",
    ])  # fmt: skip
    pairs = [(text(f"image_proj.{n}"), made if n else tensor()) for n in range(2)]
    path.write_bytes(
        rng.choice(
            [
                archive(items(*pairs)),
                stream(items(*pairs)),
                stream(items(*pairs), struct.pack("<q", big % 2**63)),
            ]
        )
    )
