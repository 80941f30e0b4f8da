"""An unpickler that runs nothing: it knows tensors and containers only.

torch's own loader is not used: the WebUI replaces ``torch.load``, torch up to 2.5 runs a TorchScript archive in spite
of ``weights_only``, and no version bounds memory or time. Here a name in the pickle is looked up in a table of this
file, and nothing is ever imported. Instructions: pickletools; how torch pickles a tensor: torch/_utils.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MAX_STEPS = 500_000  # of the unpickler; a tensor takes about 50

_ELEMENTS = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
# No quantised, sub-byte or bit types: reading those crashes torch
_PLAIN = (
    "float64", "double", "float32", "float", "float16", "half", "bfloat16", "int64", "long", "int32", "int", "int16",
    "short",
    "int8", "uint8", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _PLAIN if hasattr(torch, name)}


class PickleRefused(Exception):
    """The pickle cannot be read; the message is the reason."""


@dataclass
class Storage:
    """A block of numbers in the file. ``begin``: its first byte, known once the whole stream was read."""

    dtype: torch.dtype
    count: int
    begin: int = -1
    _copy: bytearray | None = None

    def numbers(self, data: mmap.mmap, dtype: torch.dtype) -> Tensor:
        """All of its numbers [count], mapped from ``data``; copied only where the file has them unaligned."""
        size = itemsize(dtype)
        if self.begin % size == 0:
            return torch.frombuffer(data, dtype=dtype, count=self.bytes // size, offset=self.begin)
        if self._copy is None:
            self._copy = bytearray(data[self.begin : self.begin + self.bytes])
        return torch.frombuffer(self._copy, dtype=dtype, count=self.bytes // size)

    @property
    def bytes(self) -> int:
        return self.count * itemsize(self.dtype)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the file: a strided view of a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, data: mmap.mmap) -> Tensor:
        """The tensor; of ``data`` mapped."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        return self.storage.numbers(data, self.dtype).as_strided(self.shape, self.stride, self.offset)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


def itemsize(dtype: torch.dtype) -> int:
    """Bytes of one element (``dtype.itemsize`` needs torch 2.1)."""
    return torch.empty((), dtype=dtype).element_size()


# what a pickle may name


@dataclass(frozen=True)
class _Inert:
    """A name that a pickle may mention and that does nothing here."""

    name: str = ""


def _view(storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype) -> StoredTensor:
    sizes = (*shape, *stride, offset)
    if len(shape) != len(stride) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 50 for n in sizes):
        raise PickleRefused("a tensor's shape, stride or offset is no list of whole numbers")
    available = storage.bytes // itemsize(dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= available:
        raise PickleRefused(
            f"a tensor of shape {list(shape)} needs {last + 1} numbers, and its storage has {available}"
        )
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any, *_rest: Any) -> StoredTensor:
    return _view(storage, offset, shape, stride, storage.dtype)


def _tensor_of_dtype(
    storage: Storage,
    offset: Any,
    shape: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: torch.dtype,
    *_rest: Any,
) -> StoredTensor:
    return _view(storage, offset, shape, stride, dtype)


def _parameter(data: StoredTensor, *_rest: Any) -> StoredTensor:
    return data


def _from_type(build: Callable[..., Any], _type: Any, args: Any, *_state: Any) -> Any:
    if build is _from_type:
        raise PickleRefused("it wraps a tensor in itself")
    return _call(build, args)


def _ordered() -> dict[Any, Any]:
    return {}


def _size(values: Any) -> tuple[Any, ...]:
    if type(values) is not tuple:
        raise PickleRefused("a size is no list of numbers")
    return values


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
_TYPES = ("torch.nn.parameter.Parameter", "torch.Tensor")


def _call(build: Any, args: Any) -> Any:
    if isinstance(build, _Inert):
        return build
    if build not in _BUILDERS.values() or type(args) is not tuple:
        raise PickleRefused("it calls what is no constructor of tensors")
    return build(*args)


def _key(key: Any) -> Any:
    """Text or numbers only: hashing nested tuples can take for ever."""
    if not isinstance(key, (str, int, float, type(None))):
        raise PickleRefused("a dictionary's key is neither text nor a number")
    return key


# the unpickler


@dataclass
class Unpickler:
    """A stack machine over ``pickletools.genops``. ``inert``: more names that are let pass and do nothing."""

    storage: Callable[[Any], Storage]
    inert: frozenset[str] = frozenset()
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    steps: int = 0

    def load(self, stream: io.BytesIO) -> Any:
        """The next object of the stream. Raises PickleRefused."""
        self.stack, self.marks, self.memo = [], [], {}
        try:
            while code := stream.read(1):
                self.steps += 1
                if self.steps > MAX_STEPS:
                    raise PickleRefused(f"it takes more than {MAX_STEPS} steps to read")
                if code == b".":
                    return self.stack.pop()
                self._step(code, stream)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError,
                RuntimeError) as error:  # fmt: skip
            raise PickleRefused(f"the pickle is damaged ({first_line(error)})") from None
        raise PickleRefused("the pickle is cut off")

    def _step(self, code: bytes, stream: io.BytesIO) -> None:
        opcode = _OPCODES.get(code.decode("latin-1"))
        name = opcode.name if opcode else repr(code)
        if opcode is None or name not in _KNOWN:  # before its argument is read: some take for ever
            raise PickleRefused(f"it has the instruction {name}, which torch does not use for tensors")
        value = opcode.arg.reader(stream) if opcode.arg else None
        if name in _VALUES:
            self.stack.append(value)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, value)

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def popped(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("stack")
        items, self.stack[-count:] = tuple(self.stack[-count:]), []
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleRefused("it appends to what is no list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise PickleRefused("it sets items of what is no dictionary")
        target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < 1000):
            raise PickleRefused("it asks for something without a name")
        full = f"{module}.{name}"
        if module in ("torch", "torch.cuda", "torch.storage") and name in _ELEMENTS:
            self.stack.append(_ELEMENTS[name])
        elif module == "torch" and name in _DTYPES:
            self.stack.append(_DTYPES[name])
        elif full in _BUILDERS:
            self.stack.append(_BUILDERS[full])
        elif full in _TYPES or full in self.inert:
            self.stack.append(_Inert(full))
        else:
            raise PickleRefused(f"it carries code: it asks for {full[:120]!r}, and only tensors are read")

    def reduce(self) -> None:
        build, args = self.popped(2)
        self.stack.append(_call(build, args))

    def new(self) -> None:
        kind, args = self.popped(2)
        if not isinstance(kind, _Inert) or (kind.name in _TYPES and len(args) != 1):
            raise PickleRefused("it makes an object that is no tensor")
        self.stack.append(args[0] if kind.name in _TYPES else kind)

    def build(self) -> None:
        """The state of a dictionary (``_metadata``), a tensor or something inert is not needed."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (dict, StoredTensor, _Inert)):
            raise PickleRefused("it sets the state of what is neither a dictionary nor a tensor")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
    "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
)  # fmt: skip
_STEPS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "MARK": lambda u, _: u.marks.append(len(u.stack)),
    "PUT": Unpickler.put, "BINPUT": Unpickler.put, "LONG_BINPUT": Unpickler.put, "MEMOIZE": Unpickler.put,
    "BINGET": lambda u, index: u.stack.append(u.memo[index]),
    "LONG_BINGET": lambda u, index: u.stack.append(u.memo[index]),
    "TUPLE": lambda u, _: u.stack.append(tuple(u.marked())),
    "TUPLE1": lambda u, _: u.stack.append(u.popped(1)),
    "TUPLE2": lambda u, _: u.stack.append(u.popped(2)),
    "TUPLE3": lambda u, _: u.stack.append(u.popped(3)),
    "APPEND": lambda u, _: u.extend([u.stack.pop()]),
    "APPENDS": lambda u, _: u.extend(u.marked()),
    "SETITEM": lambda u, _: u.update(list(u.popped(2))),
    "SETITEMS": lambda u, _: u.update(u.marked()),
    "GLOBAL": lambda u, name: u.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda u, _: u.name(*u.popped(2)),
    "REDUCE": lambda u, _: u.reduce(),
    "NEWOBJ": lambda u, _: u.new(),
    "BUILD": lambda u, _: u.build(),
    "BINPERSID": lambda u, _: u.stack.append(u.storage(u.stack.pop())),
}  # fmt: skip
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_KNOWN = {"PROTO", "FRAME", *_CONSTANTS, *_VALUES, *_STEPS}


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
