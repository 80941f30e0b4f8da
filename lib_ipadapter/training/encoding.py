"""Encoding: pictures to latents, references to features, by the base's autoencoder and the image encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..adapters.file import sha256
from ..encoders import weight_file
from ..encoders.clip import ImageEncoder
from ..faces.packs import own_folder
from .adapter import FEATURES
from .base import Base, apart
from .config import TrainConfig
from .faces import FaceEncoder, FacePlusEncoder


class Encoding:
    """What encodes a training's pictures. feature: the encoder's output that the variant takes; kept: what the cache
    calls it; nothing [1, ...]: that feature without a picture; digest: of the files that make the features; config:
    what those do not show. Raises EncoderError, FaceError."""

    def __init__(self, config: TrainConfig, base: Base) -> None:
        self.base = base
        self.encoder: ImageEncoder | FaceEncoder
        self.feature = FEATURES[config.variant]
        # In float32: features decide what is learned, and cost little beside the UNet.
        self.kept: str = self.feature
        self.config = ""
        file = weight_file(config.encoder) if config.encoder else None
        if config.of_face:
            folder = Path(config.face_models) if config.face_models else own_folder()
            if file:
                faces: FaceEncoder = FacePlusEncoder([folder], ImageEncoder.load(file, base.device))
                self.kept = "face and penultimate"
            else:
                faces = FaceEncoder([folder])
            self.encoder, self.nothing, self.digest = faces, faces.nothing(), faces.digest
        else:
            assert file is not None  # the config has checked it
            encoder = ImageEncoder.load(file, base.device)
            self.encoder, self.digest, self.config = encoder, sha256(file), encoder.spec.beside_weights
            self.nothing = encoder.unconditional(self.feature).of(self.feature)

    def features(self, references: Tensor) -> Tensor:
        """[B, E] or [B, N, W]"""
        parts = apart(references, self.base.device)
        return torch.cat([self.encoder.encode_pixels(part, self.feature) for part in parts])
