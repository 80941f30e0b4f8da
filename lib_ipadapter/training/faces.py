"""Faces as what a training learns from: found, aligned and recognised once, when the cache is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapters.file import sha256
from ..adapters.variant import FACE_WIDTH
from ..encoders.spec import Feature
from ..errors import FaceMissing
from ..faces import FaceAnalyser, FacePacks
from ..faces.packs import DETECTOR
from ..faces.recognise import SIDE
from ..prompts.faces import face_crop
from .source import BrokenPicture, Item

RECOGNISER = "buffalo_l"  # the pack of the published FaceID adapters


class FaceEncoder:
    """Stands where ``ImageEncoder`` does: aligned crops to embeddings of length 1. The largest face counts."""

    name = RECOGNISER

    def __init__(self, folders: Sequence[Path]) -> None:
        """folders: where face models are. Raises FaceError."""
        self.folders = tuple(folders)
        self._faces: FaceAnalyser | None = None
        self.faces.check(RECOGNISER)

    def __getstate__(self) -> dict[str, Any]:
        """For workers in processes of their own, which load the models themselves."""
        return {**self.__dict__, "_faces": None}

    @property
    def faces(self) -> FaceAnalyser:
        """What finds and recognises them."""
        if self._faces is None:
            self._faces = FaceAnalyser(FacePacks(lambda: self.folders))
        return self._faces

    @property
    def spec(self) -> FaceEncoder:
        """What ``ImageEncoder.spec`` says of an encoder: its name and the width of its feature."""
        return self

    def feature_width(self, feature: Feature) -> int:
        """Of the embedding."""
        return FACE_WIDTH

    @property
    def digest(self) -> str:
        """Of the files that make the embedding."""
        files = [self.faces.packs.find(role) for role in (DETECTOR, RECOGNISER)]
        return " ".join(sha256(file.path) for file in files)

    def nothing(self) -> Tensor:
        """The embedding of no face [1, 512]."""
        return torch.zeros(1, FACE_WIDTH)

    def reference(self, item: Item) -> Tensor:
        """The aligned crop [3, 112, 112] of a sample's reference, 0..255. Raises BrokenPicture without a face."""
        try:
            crop = face_crop(item.reference, "largest", SIDE, self.faces, item.key)
        except FaceMissing:
            raise BrokenPicture(item.key, "no face was found in it") from None
        return torch.from_numpy(np.array(crop, dtype=np.float32)).permute(2, 0, 1)

    def has_face(self, picture: Image.Image) -> bool:
        """Whether one is found."""
        try:
            return bool(self.faces.faces(picture))
        except FaceMissing:
            return False

    def encode_pixels(self, reference: Tensor, feature: Feature) -> Tensor:
        """Crops [B, 3, 112, 112] to embeddings [B, 512]."""
        crops = [Image.fromarray(crop.permute(1, 2, 0).byte().cpu().numpy()) for crop in reference]
        raw = [torch.from_numpy(self.faces.of_crop(crop, RECOGNISER)) for crop in crops]
        return F.normalize(torch.stack(raw), dim=-1)

    def to(self, device: torch.device | str) -> FaceEncoder:
        """It runs on the CPU."""
        return self
