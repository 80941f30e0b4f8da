"""Face alignment: the similarity that takes five points to ArcFace's template, and the crop that it gives.

Source: insightface 2.1, utils/face_align.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runtime import cv2

Array = NDArray[Any]
# Image-left eye, image-right eye, nose, image-left and image-right mouth corner, in a crop of 112 x 112 pixels
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)

_LONGEST = 32_000  # pixels of a side: OpenCV warps none of 32767


def template(size: int) -> Array:
    """The five points [5, 2] in a crop of ``size`` pixels, a multiple of 112 or of 128. Raises ValueError.

    A multiple of 128 has the magnification of size / 128 and a margin: 8 pixels left and right of 112, 16 below.
    """
    if size > 0 and size % 112 == 0:
        return TEMPLATE * (size / 112)
    if size > 0 and size % 128 == 0:
        return TEMPLATE * (size / 128) + [8 * size / 128, 0]
    raise ValueError(f"crop size: got {size}, expected a multiple of 112 or of 128 pixels")


def similarity(points: Array, target: Array) -> Array:
    """The similarity transform [2, 3] (rotation, scale, shift; no reflection) from ``points`` [N, 2] to ``target``
    [N, 2] with the least squared error (Umeyama 1991, in two dimensions). Raises ValueError for points that
    coincide."""
    source, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    centre, goal = source.mean(0), target.mean(0)
    s, t = source - centre, target - goal
    norm = (s * s).sum()
    if norm < 1e-9:
        raise ValueError("the points of the face coincide")
    a = (s * t).sum() / norm
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / norm
    rotation = np.array([[a, -b], [b, a]])
    return np.hstack([rotation, (goal - rotation @ centre)[:, None]])


def aligned_crop(picture: Array, points: Array, size: int) -> Array:
    """The aligned crop [size, size, 3] of an RGB picture [H, W, 3] uint8; black outside the picture."""
    longest = max(picture.shape[:2])
    if longest > _LONGEST:
        scale = _LONGEST / longest
        height, width = (max(1, int(side * scale)) for side in picture.shape[:2])
        points = np.asarray(points) * [width / picture.shape[1], height / picture.shape[0]]
        picture = cv2().resize(picture, (width, height), interpolation=cv2().INTER_AREA)
    matrix = similarity(points, template(size))
    crop: Array = cv2().warpAffine(picture, matrix, (size, size), borderValue=0.0)
    return crop
