"""What an ONNX file says of itself, read without the onnx package and without running it: protobuf wire format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FaceModelError

_FIRST_NODES = 8  # among which mxnet exports subtract the mean and divide by the std
# Field numbers of onnx.proto3
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 1, 5, 11, 12
_NODE_NAME, _TENSOR_NAME, _VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE = 3, 8, 1, 2, 1, 2
_SHAPE_DIM, _DIM_VALUE = 1, 1
_DEPTH_OF_SHAPE = (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE)
_NODE_OP, _EXTERNAL_DATA, _DATA_LOCATION = 4, 13, 14
# What lies in a message, by field number: all places in which a model can have nodes or tensors
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_ENDLESS = ("Loop", "Scan", "SequenceMap")  # no face model has them, and one may never end


@dataclass(frozen=True)
class Graph:
    """inputs: the shape of each input that is no weight, 0 for a free dimension; outputs: their number; normalises:
    whether the graph itself subtracts the mean and divides by the std (exports of mxnet)."""

    inputs: tuple[tuple[int, ...], ...]
    outputs: int
    normalises: bool


def read_graph(content: bytes, name: str) -> Graph:
    """Raises FaceModelError for bytes that are no ONNX model."""
    try:
        graph = next(value for number, value in _fields(memoryview(content)) if number == _MODEL_GRAPH)
        return _read(_bytes(graph))
    except (StopIteration, ValueError, IndexError, UnicodeDecodeError):
        raise FaceModelError(f"{name}: not an ONNX model, or cut off; download it again", file=name) from None


def refuse_hostile(content: bytes, name: str) -> None:
    """Raises FaceModelError for a model that reads other files as its weights (onnxruntime opens them relative to the
    working folder), for one with loops, and for bytes that are no ONNX model."""
    left = [("model", memoryview(content))]
    try:
        while left:
            kind, message = left.pop()
            for number, value in _fields(message):
                if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                    raise FaceModelError(f"{name}: its weights are in another file; use the published one", file=name)
                if kind == "node" and number == _NODE_OP and bytes(_bytes(value)).decode() in _ENDLESS:
                    raise FaceModelError(f"{name}: a loop, which no face model has; download it again", file=name)
                if inside := _INSIDE.get(kind, {}).get(number):
                    left.append((inside, _bytes(value)))
    except (ValueError, IndexError):
        raise FaceModelError(f"{name}: not an ONNX model, or cut off; download it again", file=name) from None


def _read(graph: memoryview) -> Graph:
    nodes: list[str] = []
    inputs: dict[str, tuple[int, ...]] = {}
    weights: set[str] = set()
    outputs = 0
    for number, value in _fields(graph):
        if number == _GRAPH_NODE and len(nodes) < _FIRST_NODES:
            nodes.append(_text(_bytes(value), _NODE_NAME))
        elif number == _GRAPH_INITIALIZER:
            weights.add(_text(_bytes(value), _TENSOR_NAME))
        elif number == _GRAPH_INPUT:
            inputs[_text(_bytes(value), _VALUE_NAME)] = _shape(_bytes(value))
        elif number == _GRAPH_OUTPUT:
            outputs += 1
    subtracts = any(name.startswith(("Sub", "_minus")) for name in nodes)
    divides = any(name.startswith(("Mul", "_mul")) for name in nodes)
    shapes = tuple(shape for key, shape in inputs.items() if key not in weights)
    return Graph(shapes, outputs, subtracts and divides)


def _shape(value: memoryview) -> tuple[int, ...]:
    for wanted in _DEPTH_OF_SHAPE:
        value = next((_bytes(inner) for number, inner in _fields(value) if number == wanted), memoryview(b""))
    return tuple(_dimension(_bytes(inner)) for number, inner in _fields(value) if number == _SHAPE_DIM)


def _dimension(value: memoryview) -> int:
    return next((size for number, size in _fields(value) if number == _DIM_VALUE and isinstance(size, int)), 0)


def _text(message: memoryview, wanted: int) -> str:
    value = next((inner for number, inner in _fields(message) if number == wanted), None)
    return "" if value is None else bytes(_bytes(value)).decode()


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, number or bytes) of a message, nothing copied. Raises ValueError, IndexError."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > len(message) - at:
            raise ValueError("cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("varint")
