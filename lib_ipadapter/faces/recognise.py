"""Face recognition by ArcFace (arXiv 1801.07698), as insightface 2.1 runs it (model_zoo/arcface_onnx.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FaceModelError
from .align import aligned_crop
from .detect import Face
from .onnx_graph import read_graph
from .runtime import run, session

Array = NDArray[Any]
SIDE = 112  # pixels of the crop
WIDTH = 512  # of the embedding


class Recogniser:
    """An ArcFace model: an aligned crop to an embedding."""

    def __init__(self, content: bytes, name: str) -> None:
        """content: the ONNX file. Raises FacesUnavailable, FaceModelError."""
        self.name = name
        self._model = session(content, name)
        normalises = read_graph(content, name).normalises
        self.mean, self.std = (0.0, 1.0) if normalises else (127.5, 127.5)

    def embedding(self, picture: Array, face: Face) -> Array:
        """The raw embedding [512] float32 of a face in an RGB picture [H, W, 3] uint8. FaceID takes e / |e|, InstantID
        and PuLID e itself. Raises FaceModelError."""
        return self.of_crop(aligned_crop(picture, np.asarray(face.points), SIDE))

    def of_crop(self, crop: Array) -> Array:
        """The same of an aligned crop [112, 112, 3]."""
        blob = ((crop.astype(np.float32) - self.mean) / self.std).transpose(2, 0, 1)[None]
        output = np.asarray(run(self._model, self.name, np.ascontiguousarray(blob))[0], np.float32)
        if output.size != WIDTH:
            raise FaceModelError(
                f"{self.name}: an embedding of shape {output.shape}, expected {WIDTH} numbers; use w600k_r50.onnx "
                "(buffalo_l) or glintr100.onnx (antelopev2)",
                file=self.name,
            )
        embedding: Array = output.reshape(WIDTH)
        if not np.isfinite(embedding).all() or not np.linalg.norm(embedding) > 1e-6:
            raise FaceModelError(f"{self.name}: the embedding is zero, NaN or infinite; download the file again",
                                 file=self.name)  # fmt: skip
        return embedding
