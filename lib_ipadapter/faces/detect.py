"""Face detection by SCRFD (arXiv 2105.04714), as insightface 2.1 decodes it (model_zoo/scrfd.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FaceModelError
from .runtime import cv2, run, session

Array = NDArray[Any]
STRIDES = (8, 16, 32)
ANCHORS = 2  # per cell
MIN_SCORE = 0.5
MAX_OVERLAP = 0.4  # of two boxes that stay
_FAR = 8  # extents of the picture that a face may lie outside of it: padding moves it, nothing else
MAX_CANDIDATES = 4096  # before suppression: a random model gives tens of thousands


@dataclass(frozen=True)
class Face:
    """A face. box: left, top, right, bottom; points: image-left eye, image-right eye, nose, image-left and image-right
    mouth corner, each (x, y); all in pixels of the picture. score: 0..1."""

    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]
    score: float

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        left, top, right, bottom = self.box
        return max(right - left, 0.0) * max(bottom - top, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def moved(self, x: float, y: float) -> Face:
        """The same face in a picture whose origin lies elsewhere."""
        left, top, right, bottom = self.box
        return Face(
            (left + x, top + y, right + x, bottom + y),
            tuple((a + x, b + y) for a, b in self.points),
            self.score,
        )

    def scaled(self, x: float, y: float) -> Face:
        """The same face in a picture of another size."""
        left, top, right, bottom = self.box
        return Face(
            (left * x, top * y, right * x, bottom * y), tuple((a * x, b * y) for a, b in self.points), self.score
        )


class Detector:
    """An SCRFD model with five points per face: nine outputs, scores, boxes and points of three strides."""

    def __init__(self, content: bytes, name: str) -> None:
        """content: the ONNX file. Raises FacesUnavailable, FaceModelError."""
        self.name = name
        self._model = session(content, name)
        count = len(self._model.get_outputs())
        if count != 3 * len(STRIDES):
            raise FaceModelError(
                f"{name}: a face detector with {count} outputs, expected 9 (SCRFD with points, such as det_10g.onnx)",
                file=name,
            )

    def faces(self, picture: Array, sizes: Sequence[int] = (640,)) -> list[Face]:
        """The faces of an RGB picture [H, W, 3] uint8, best score first, looked for at each of these square sizes;
        candidates of all sizes meet in one non-maximum suppression. Raises FaceModelError."""
        found = [self._candidates(picture, size) for size in sizes]
        boxes, scores, points = (np.concatenate([one[i] for one in found]) for i in range(3))
        order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        boxes, scores, points = boxes[order], scores[order], points[order]
        return [
            Face(
                tuple(map(float, boxes[i])),  # type: ignore[arg-type]
                tuple((float(x), float(y)) for x, y in points[i]),
                float(scores[i]),
            )
            for i in suppressed(boxes)
        ]

    def _candidates(self, picture: Array, size: int) -> tuple[Array, Array, Array]:
        """(boxes [N, 4], scores [N], points [N, 5, 2]) in the picture's pixels."""
        square, scale = letterboxed(picture, size)
        blob = ((square.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        outputs = run(self._model, self.name, np.ascontiguousarray(blob))
        boxes, scores, points = [], [], []
        for i, stride in enumerate(STRIDES):
            centres = _centres(size // stride, stride)
            score, box, point = (
                self._rows(outputs[i + len(STRIDES) * part], width, len(centres))
                for part, width in enumerate((1, 4, 10))
            )
            keep = np.flatnonzero(score[:, 0] >= MIN_SCORE)
            # In float64: a broken model's numbers are left out below, and do not overflow here.
            at, box, point = centres[keep], box[keep].astype(float) * stride, point[keep].astype(float) * stride
            scores.append(score[keep, 0])
            boxes.append(np.hstack([at - box[:, :2], at + box[:, 2:]]))
            points.append(at[:, None] + point.reshape(-1, 5, 2))
        found = np.concatenate(boxes) / scale, np.concatenate(scores), np.concatenate(points) / scale
        good = _possible(found[0], found[2], max(picture.shape[:2]))
        return found[0][good], found[1][good], found[2][good]

    def _rows(self, output: Array, width: int, count: int) -> Array:
        """An output as [count, width]; some exports have a leading batch axis. Raises FaceModelError."""
        rows = np.asarray(output[0] if getattr(output, "ndim", 0) == 3 else output, np.float32)
        if rows.shape != (count, width):
            raise FaceModelError(
                f"{self.name}: an output of shape {rows.shape}, expected {(count, width)}; use det_10g.onnx",
                file=self.name,
            )
        return rows


def letterboxed(picture: Array, size: int) -> tuple[Array, float]:
    """(The picture [H, W, 3] scaled into the top left corner of a black square [size, size, 3], the scale)."""
    height, width = picture.shape[:2]
    tall = height / width > 1
    high = size if tall else max(int(size * (height / width)), 1)
    wide = max(int(size / (height / width)), 1) if tall else size
    square = np.zeros((size, size, 3), np.uint8)
    square[:high, :wide] = cv2().resize(picture, (wide, high))
    return square, high / height


def _possible(boxes: Array, points: Array, extent: int) -> Array:
    """Which faces can be aligned: finite, not far outside of a picture of that extent, and with points that differ."""
    near = (np.abs(boxes) <= _FAR * extent).all(1) & (np.abs(points) <= _FAR * extent).all((1, 2))
    spread = np.ptp(np.where(near[:, None, None], points, 0), axis=1)
    good: Array = near & (spread >= 1).any(1)  # NaN is not near
    return good


def _centres(cells: int, stride: int) -> Array:
    """Centres [cells · cells · ANCHORS, 2] of the anchors, (x, y) in pixels of the square, row by row."""
    y, x = np.mgrid[:cells, :cells]
    centres = np.stack([x, y], -1).reshape(-1, 2).astype(np.float32) * stride
    return centres.repeat(ANCHORS, 0)


def suppressed(boxes: Array) -> list[int]:
    """Indices of the boxes [N, 4], best first, that overlap no better one by more than MAX_OVERLAP."""
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    left, keep = np.arange(len(boxes)), []
    while len(left):
        best, rest = left[0], left[1:]
        keep.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low + 1).clip(min=0).prod(1)
        left = rest[shared / (areas[best] + areas[rest] - shared) <= MAX_OVERLAP]
    return keep
