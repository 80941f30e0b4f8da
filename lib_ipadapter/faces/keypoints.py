"""The picture of a face's five points that InstantID's ControlNet was trained on.

instantX-research/InstantID 2145b67, pipeline_stable_diffusion_xl_instantid.py, draw_kps: the same pixels for one face.
Widths are pixels of the generated picture, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Of the left eye, the right eye, the nose, the mouth's corners, as they are seen
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
_LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
_HALF_WIDTH, _RADIUS, _DIM = 4, 10, 0.6


def draw_keypoints(size: tuple[int, int], faces: Sequence[Array]) -> Array:
    """RGB [H, W, 3] uint8. size: width and height; faces: five points [5, 2] each, in pixels; they may lie outside."""
    import cv2

    # Limbs in the colours that their dimmed pixels round to; float64, as published, takes 48 bytes for a pixel
    drawn: Array = np.zeros((size[1], size[0], 3), np.uint8)
    for points in faces:
        for first, second in _LIMBS:
            (x, y), (end, foot) = points[first], points[second]
            length = ((x - end) ** 2 + (y - foot) ** 2) ** 0.5
            angle = math.degrees(math.atan2(y - foot, x - end))
            centre = int((x + end) / 2), int((y + foot) / 2)
            outline = cv2.ellipse2Poly(centre, (int(length / 2), _HALF_WIDTH), int(angle), 0, 360, 1)
            colour = tuple(int(part * _DIM) for part in COLOURS[first])
            drawn = np.asarray(cv2.fillConvexPoly(drawn, np.asarray(outline), colour))
    for points in faces:
        for (x, y), colour in zip(points, COLOURS, strict=True):
            drawn = np.asarray(cv2.circle(drawn, (int(x), int(y)), _RADIUS, colour, -1))
    return drawn
