"""YuNet with SCRFD's inputs and outputs, so that ``lib_ipadapter.faces`` runs it as it runs InsightFace's detector.

YuNet (MIT, OpenCV's model zoo) has one anchor per cell, its own coding of boxes and BGR pixels of 0..255. A few nodes
around its graph turn all of that into SCRFD's: nothing is retrained, and no weight is changed. The graph is written
with the package onnx.
"""

from __future__ import annotations

from typing import Any

STRIDES = (8, 16, 32)
MEAN, STD = 127.5, 128.0  # of SCRFD's pixels


def as_scrfd(content: bytes) -> bytes:
    """The ONNX file of YuNet (face_detection_yunet_2023mar) with nine outputs: scores [N, 1], distances to the edges
    [N, 4] and points [N, 10] of three strides, in strides, two anchors per cell; the second never finds anything.
    Raises ValueError for another file."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    wanted = {f"{part}_{stride}" for part in ("cls", "obj", "bbox", "kps") for stride in STRIDES}
    if {output.name for output in graph.output} != wanted:
        raise ValueError(
            f"outputs {[output.name for output in graph.output]}, expected those of YuNet: {sorted(wanted)}"
        )
    given = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["bgr" if name == given else name for name in node.input]
    inside = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    writer = _Writer(graph)
    writer.pixels()
    graph.node.extend(inside)
    writer.scores()
    writer.boxes()
    writer.points()
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


class _Writer:
    """Adds the nodes on both sides of YuNet's."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def pixels(self) -> None:
        """RGB, (p - MEAN) / STD, to BGR of 0..255."""
        from onnx import TensorProto, helper

        self.graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, None, None]))
        scaled = self._node("Mul", ["input", self._number("std", STD)])
        shifted = self._node("Add", [scaled, self._number("mean", MEAN)])
        self._node("Gather", [shifted, self._whole("bgr_order", [2, 1, 0])], "bgr", axis=1)

    def scores(self) -> None:
        """The root of both probabilities' product, as OpenCV's FaceDetectorYN has it; 0 for the second anchor."""
        nothing = self._number("nothing", 0.0)
        for stride in STRIDES:
            both = self._node("Mul", [f"cls_{stride}", f"obj_{stride}"])
            score = self._node("Sqrt", [both])
            self._anchors(f"scrfd_score_{stride}", [score, self._node("Mul", [score, nothing])], 1)

    def boxes(self) -> None:
        """Centre and logarithm of the size to distances from the cell's corner to the edges."""
        half = self._number("half", 0.5)
        centre, size, last = (self._whole(name, [n]) for name, n in (("from_0", 0), ("from_2", 2), ("to_4", 4)))
        axis = self._whole("axis", [2])
        for stride in STRIDES:
            middle = self._node("Slice", [f"bbox_{stride}", centre, size, axis])
            extent = self._node(
                "Mul", [self._node("Exp", [self._node("Slice", [f"bbox_{stride}", size, last, axis])]), half]
            )
            edges = [self._node("Sub", [extent, middle]), self._node("Add", [extent, middle])]
            self._anchors(f"scrfd_box_{stride}", 2 * edges, 4)

    def points(self) -> None:
        """Five points: coded alike in both."""
        for stride in STRIDES:
            self._anchors(f"scrfd_points_{stride}", [f"kps_{stride}"] * 2, 10)

    def _anchors(self, name: str, parts: list[str], width: int) -> None:
        """An output [2 N, width] of parts [1, N, ...] side by side."""
        from onnx import TensorProto, helper

        beside = self._node("Concat", parts, axis=2)
        self._node("Reshape", [beside, self._whole(f"rows_of_{name}", [-1, width])], name)
        self.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]))

    def _node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"dressed_{len(self.graph.node)}_{len(self.graph.initializer)}"
        self.graph.node.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, [value], "float32")

    def _whole(self, name: str, values: list[int]) -> str:
        return self._constant(name, values, "int64")

    def _constant(self, name: str, values: list[Any], kind: str) -> str:
        import numpy as np
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), f"dressed_{name}"))
        return f"dressed_{name}"
