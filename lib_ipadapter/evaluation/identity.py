"""Identity: is it the same person? The cosine of ArcFace embeddings (arXiv 1801.07698) of reference and picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FaceMissing
from ..faces import FaceAnalyser
from .items import Item

Array = NDArray[Any]
IDENTITY, FOUND = "identity", "face_found"


class Identity:
    """Measures for ``evaluate``'s extra. The largest face counts, in the reference and in the picture."""

    def __init__(self, faces: FaceAnalyser, recogniser: str) -> None:
        """Raises FaceError where models or packages are missing."""
        faces.check(recogniser)
        self._faces, self._recogniser = faces, recogniser
        self._references: dict[str, Array | None] = {}

    def measures(self) -> dict[str, Callable[[Image.Image, Item], float]]:
        """By name: the cosine, NaN where either has no face; and whether the picture has one, whose mean is the rate
        of faces found. A picture without a face says nothing of who it is, so both belong together."""
        return {IDENTITY: self.cosine, FOUND: self.found}

    def cosine(self, picture: Image.Image, item: Item) -> float:
        """-1..1"""
        if item.key not in self._references:
            self._references[item.key] = self._embedding(item.load())
        one, other = self._references[item.key], self._embedding(picture)
        return math.nan if one is None or other is None else float(one @ other)

    def found(self, picture: Image.Image, item: Item) -> float:
        """1 or 0"""
        return float(self._embedding(picture) is not None)

    def _embedding(self, picture: Image.Image) -> Array | None:
        """Of length 1; None without a face."""
        try:
            face = max(self._faces.faces(picture), key=lambda face: face.area)
        except FaceMissing:
            return None
        raw = self._faces.embedding(picture, face, self._recogniser).astype(np.float64)
        unit: Array = raw / np.linalg.norm(raw)
        return unit
