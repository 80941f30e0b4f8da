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
from ..encoders.clip import ImageEncoder, normalised
from ..encoders.source import EncoderSource, LoadedSource
from ..encoders.spec import Feature, Need
from ..errors import FaceMissing
from ..faces import FaceAnalyser, FacePacks
from ..faces.packs import DETECTOR
from ..faces.recognise import SIDE
from ..pictures.picture import Pictures
from ..prompts.encode import FeatureMap, FeatureSource
from ..prompts.faces import face_crop
from ..prompts.pipeline import Pipeline
from ..prompts.references import NoStore
from ..prompts.resolve import resolve
from ..unit import Unit
from ..unit.fields import Reference
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
        return torch.from_numpy(np.array(self.crop(item, SIDE), dtype=np.float32)).permute(2, 0, 1)

    def crop(self, item: Item, side: int) -> Image.Image:
        """The aligned crop of the reference, ``side`` pixels wide. Raises BrokenPicture without a face."""
        try:
            return face_crop(item.reference, "largest", side, self.faces, item.key)
        except FaceMissing:
            raise BrokenPicture(item.key, "no face was found in it") from None

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

    def of_picture(self, picture: Image.Image) -> Tensor:
        """The feature of a picture, as a generation computes it."""
        return self._generated(picture, EncoderSource([]), self._face_need())["face"]

    def _face_need(self) -> Need:
        return Need("face", FACE_WIDTH, self.name, "face")

    def _generated(self, picture: Image.Image, source: FeatureSource, *needs: Need) -> FeatureMap:
        resolved = resolve(Unit(images=(Reference(picture),)), NoStore(), Pictures())
        return Pipeline(source, faces=self.faces).features(resolved, needs).references[0]()


class FacePlusEncoder(FaceEncoder):
    """Of FaceID-Plus: the embedding and, of the same face's aligned crop, the state of a CLIP tower; as one tensor
    (``packed``)."""

    def __init__(self, folders: Sequence[Path], clip: ImageEncoder) -> None:
        """Raises FaceError."""
        super().__init__(folders)
        self._clip: ImageEncoder | None = clip
        self._tower = clip.spec

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_clip": None}

    @property
    def clip(self) -> ImageEncoder:
        """The tower, in the process that encodes."""
        assert self._clip is not None
        return self._clip

    def feature_width(self, feature: Feature) -> int:
        """Of the embedding, or of the tower's state."""
        return FACE_WIDTH if feature == "face" else self._tower.feature_width(feature)

    @property
    def digest(self) -> str:
        """Of the files that make both."""
        return f"{super().digest} {sha256(self.clip.path)}"

    def nothing(self) -> Tensor:
        """No face, and the state of zero pixels [1, R + N, W]."""
        return packed(super().nothing(), self.clip.unconditional("penultimate").penultimate.float().cpu())

    def reference(self, item: Item) -> Tensor:
        """Both crops, as one row of numbers: that of the recogniser, and that of the tower, normalised."""
        pixels = normalised(self.crop(item, self._tower.image_size), self._tower)
        return torch.cat([super().reference(item).flatten(), pixels.flatten()])

    def encode_pixels(self, reference: Tensor, feature: Feature) -> Tensor:
        """Of ``reference`` [B, ...]: [B, R + N, W]."""
        of_face, side = reference[:, : 3 * SIDE * SIDE], self._tower.image_size
        pixels = reference[:, of_face.shape[1] :].reshape(-1, 3, side, side)
        faces = super().encode_pixels(of_face.reshape(-1, 3, SIDE, SIDE), feature)
        return packed(faces, self.clip.encode_pixels(pixels, "penultimate"))

    def to(self, device: torch.device | str) -> FaceEncoder:
        """Moves the tower."""
        self.clip.to(device)
        return self

    def of_picture(self, picture: Image.Image) -> Tensor:
        """The feature of a picture, as a generation computes it."""
        states = Need("penultimate", self.feature_width("penultimate"), self._tower.name, "face")
        found = self._generated(picture, LoadedSource(self.clip), self._face_need(), states)
        return packed(found["face"], found["penultimate"])


def packed(face: Tensor, states: Tensor) -> Tensor:
    """Embeddings [B, 512], in the first R rows, and states [B, N, W] as one tensor [B, R + N, W]."""
    width = states.shape[-1]
    rows = -(-FACE_WIDTH // width)
    padded = F.pad(face, (0, rows * width - FACE_WIDTH)).unflatten(-1, (rows, width))
    return torch.cat([padded.to(states), states], dim=1)


def unpacked(features: Tensor) -> tuple[Tensor, Tensor]:
    """The two that were ``packed``."""
    rows = -(-FACE_WIDTH // features.shape[-1])
    return features[:, :rows].flatten(1)[:, :FACE_WIDTH], features[:, rows:]
