"""Small face models: an SCRFD that finds bright patches, and an ArcFace of random weights. Written with the onnx
package.

The detector is no stand-in that ignores its input: a cell's score is how red its pixels are, so a test decides where
faces are by painting red squares.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

STRIDES = (8, 16, 32)
WIDTHS = (1, 4, 10)
# What the detector gives for every face: distances to the edges and points, in strides
BOX = (1.0, 1.5, 1.0, 1.5)
POINTS = (-0.5, -0.4, 0.5, -0.4, 0.0, 0.1, -0.4, 0.6, 0.4, 0.6)


def detector(stride: int = 32, everywhere: bool = False) -> bytes:
    """Finds faces at one stride, where the picture is red: score = sigmoid(20 · (red - blue) - 20), means over the
    cell. everywhere: whatever is there."""
    nodes, weights, outputs = [], [], []
    for part, width in enumerate(WIDTHS):
        for s in STRIDES:
            name = f"out{part}_{s}"
            weights.append(numpy_helper.from_array(np.array([1, 0, -1], np.float32).reshape(1, 3, 1, 1), f"{name}_w"))
            nodes.append(helper.make_node("Conv", ["input", f"{name}_w"], [f"{name}_red"]))
            nodes.append(
                helper.make_node("AveragePool", [f"{name}_red"], [f"{name}_cell"], kernel_shape=[s, s], strides=[s, s])
            )
            seen = (0.0, 20.0) if everywhere else (20.0, -20.0)
            values = {0: seen, 1: (0.0, 0.0), 2: (0.0, 0.0)}[part]
            scale = np.full((1, 2 * width, 1, 1), values[0], np.float32)
            rest = {0: [values[1]] * 2, 1: BOX * 2, 2: POINTS * 2}[part]
            shift = np.array(rest, np.float32).reshape(1, 2 * width, 1, 1)
            if part == 0 and s != stride:
                shift = shift - 1000
            if part == 0:
                shift[:, 1] -= 1000  # one anchor of two
            weights += [
                numpy_helper.from_array(scale, f"{name}_s"),
                numpy_helper.from_array(shift, f"{name}_b"),
            ]
            nodes.append(helper.make_node("Mul", [f"{name}_cell", f"{name}_s"], [f"{name}_m"]))
            nodes.append(helper.make_node("Add", [f"{name}_m", f"{name}_b"], [f"{name}_a"]))
            nodes.append(helper.make_node("Transpose", [f"{name}_a"], [f"{name}_t"], perm=[0, 2, 3, 1]))
            weights.append(numpy_helper.from_array(np.array([-1, width], np.int64), f"{name}_shape"))
            last = name if part else f"{name}_logit"
            nodes.append(helper.make_node("Reshape", [f"{name}_t", f"{name}_shape"], [last]))
            if not part:
                nodes.append(helper.make_node("Sigmoid", [last], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, None, None])
    return _model(nodes, [given], outputs, weights)


def recogniser(seed: int = 0, normalises: bool = False, width: int = 512) -> bytes:
    """Pools the crop to 7 x 7 and multiplies by random weights. normalises: subtracts and divides in its graph."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "data"
    if normalises:
        weights += [numpy_helper.from_array(np.array([127.5], np.float32), "mean"),
                    numpy_helper.from_array(np.array([1 / 128], np.float32), "std")]  # fmt: skip
        nodes += [helper.make_node("Sub", ["data", "mean"], ["centred"], name="_minusscalar0"),
                  helper.make_node("Mul", ["centred", "std"], ["scaled"], name="_mulscalar0")]  # fmt: skip
        last = "scaled"
    matrix = rng.standard_normal((3 * 49, width)).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, "matrix"))
    nodes += [
        helper.make_node("AveragePool", [last], ["pooled"], name="pool", kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"], name="fc"),
    ]
    given = helper.make_tensor_value_info("data", TensorProto.FLOAT, [None, 3, 112, 112])
    return _model(
        nodes,
        [given],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, width])],
        weights,
    )


def _model(nodes: list, inputs: list, outputs: list, weights: list) -> bytes:
    graph = helper.make_graph(nodes, "face", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_pack(folder: Path, name: str = "buffalo_l", seed: int = 0) -> Path:
    """A pack's folder with both models under their published names."""
    files = {
        "buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"),
        "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx"),
    }
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    for file, content in zip(files[name], (detector(), recogniser(seed)), strict=True):
        (home / file).write_bytes(content)
    return home


def picture(*centres: tuple[int, int], size: tuple[int, int] = (640, 640), radius: int = 40) -> Image.Image:
    """A blue picture with a red square around each centre, textured so that crops differ."""
    made = Image.new("RGB", size, (0, 0, 120))
    draw = ImageDraw.Draw(made)
    for i, (x, y) in enumerate(centres):
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=(255, 40 * i % 256, 0))
        draw.line((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 90), width=2 + i)
    return made
