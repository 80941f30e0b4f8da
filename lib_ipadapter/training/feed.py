"""Feed: batches of latents, features and captions, made as they are needed or taken from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters.file import sha256
from ..encoders.clip import ImageEncoder
from ..encoders.spec import Feature
from ..errors import ConfigError
from .adapter import FEATURES
from .base import Base, Sizes
from .cache import Cache
from .config import TrainConfig
from .data import Positions, PositionSampler, Preparation, Sample, draws, loader, stacked
from .faces import FaceEncoder
from .run_folder import RunFolder
from .source import BrokenPicture, Source
from .sources import open_source


@dataclass(frozen=True)
class Batch:
    """One micro step of one process. moments [B, 8, h, w]; features [B, E] or [B, N, W]; generators: one per picture,
    for everything random about it."""

    keys: list[str]
    captions: list[str]
    moments: Tensor
    features: Tensor
    sizes: Sizes | None
    generators: list[torch.Generator]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one picture: [4, h, w]."""
        _, channels, height, width = self.moments.shape
        return channels // 2, height, width


def stored_dtype(feature: str) -> str:
    """How the cache stores a kind of features: penultimate ones, a hundred times larger, in half precision."""
    return "float16" if feature == "penultimate" else "float32"


def _encoder(config: TrainConfig, base: Base) -> ImageEncoder | FaceEncoder:
    """In float32: features decide what is learned, and cost little beside the UNet. Raises EncoderError, FaceError."""
    if config.variant != "faceid":
        return ImageEncoder.load(Path(config.encoder), base.device)
    return FaceEncoder([Path(config.face_models) if config.face_models else Path.home() / ".insightface"])


def _nothing(encoder: ImageEncoder | FaceEncoder, feature: Feature) -> Tensor:
    """The feature without a picture, [1, ...]."""
    return encoder.nothing() if isinstance(encoder, FaceEncoder) else encoder.unconditional(feature).of(feature)


class Feed:
    """A training's data for this process. Raises FileError, EncoderError, ConfigError."""

    def __init__(self, config: TrainConfig, base: Base, accelerator: Any, folder: RunFolder) -> None:
        self.config, self.base, self.accelerator, self.folder = config, base, accelerator, folder
        self.source: Source = open_source(config.data)
        self.encoder = _encoder(config, base)
        self.feature = FEATURES[config.variant]
        self.resolution = config.resolution or base.resolution
        if self.resolution % base.multiple:
            raise ConfigError("resolution", self.resolution, f"a multiple of {base.multiple} for this base")
        self.nothing = _nothing(self.encoder, self.feature)
        self.broken = 0
        self._listed: set[str] = set()
        self.cache: Cache | None = None

    def first_pictures(self, count: int) -> list[Image.Image]:
        """The first references of the data that can be read."""
        found: list[Image.Image] = []
        for index in range(len(self.source)):
            if len(found) == count:
                break
            try:
                picture = self.source.load(index).reference
            except BrokenPicture:
                continue
            if isinstance(self.encoder, ImageEncoder) or self.encoder.has_face(picture):
                found.append(picture)
        return found

    def batches(self, step: int) -> Iterator[Batch]:
        """This process's micro batches from an optimizer step on, without end."""
        config, world = self.config, self.accelerator
        sampler = PositionSampler(step, world.num_processes, world.process_index, config.batch, config.accumulate)
        positions = Positions(self.source, self._preparation, config.seed, self.cache)
        for samples in loader(positions, sampler, config.workers, config.prefetch):
            self._list_broken(samples)
            yield self._batch(samples)

    @property
    def _preparation(self) -> Preparation:
        return Preparation(self.resolution, self.encoder.spec)

    def _list_broken(self, samples: Sequence[Sample]) -> None:
        """Counts and lists the pictures that were skipped, each once."""
        for key, reason in (pair for sample in samples for pair in sample.broken):
            if key not in self._listed:
                self._listed.add(key)
                self.broken += 1
                self.folder.broken(key, reason)

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        if self.cache is None:
            moments, features = self._encode(stacked(samples, "pixels"), stacked(samples, "reference"))
        else:
            moments, features = stacked(samples, "moments"), stacked(samples, "features")
        return Batch(
            keys=[sample.key for sample in samples],
            captions=[sample.caption for sample in samples],
            moments=moments,
            features=features,
            sizes=Sizes(stacked(samples, "sizes")) if self.base.sdxl else None,
            generators=[draws(self.config.seed, sample.position) for sample in samples],
        )

    def _encode(self, pixels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.moments(pixels), self.encoder.encode_pixels(reference, self.feature)

    # cache

    def fill_cache(self) -> None:
        """Opens the cache and encodes what it lacks, each process a part."""
        config, world = self.config, self.accelerator
        side = self.resolution // self.base.factor
        shapes = {
            "moments": ((8, side, side), "float32"),
            "features": (tuple(self.nothing.shape[1:]), stored_dtype(self.feature)),
            "sizes": ((6,), "float32"),
        }
        folder = Path(config.cache_dir) if config.cache_dir else Path(config.out) / "cache"
        cache = Cache(folder, self._about(), len(self.source), shapes)
        if world.is_main_process:
            cache.create()
        world.wait_for_everyone()
        missing = cache.missing()
        world.wait_for_everyone()  # before anyone fills rows in
        self._fill(cache, missing[world.process_index :: world.num_processes])
        world.wait_for_everyone()
        self.cache = cache
        self.encoder.to("cpu")

    @property
    def digest(self) -> str:
        """Of the files that make the features."""
        return self.encoder.digest if isinstance(self.encoder, FaceEncoder) else sha256(self.config.encoder)

    def _about(self) -> dict[str, str]:
        base = Path(self.config.base)
        inner = base if base.is_file() else base / "vae" / "diffusion_pytorch_model.safetensors"
        return {
            "data": self.source.fingerprint,
            "base": sha256(inner) if inner.is_file() else str(base),
            "encoder": self.digest,
            "feature": self.feature,
            "resolution": str(self.resolution),
        }

    def _fill(self, cache: Cache, indices: Sequence[int]) -> None:
        from tqdm import tqdm

        shown = self.accelerator.is_main_process and bool(indices)
        with tqdm(total=len(indices), unit="picture", desc="cache", disable=not shown) as bar:
            for first in range(0, len(indices), self.config.batch):
                group = indices[first : first + self.config.batch]
                ready: dict[int, dict[str, Tensor]] = {}
                for index in group:
                    try:
                        ready[index] = self._preparation(self.source.load(index))
                    except BrokenPicture as error:
                        cache.put_broken(index)
                        self.folder.broken(error.key, error.reason)
                if ready:
                    rows = {
                        name: torch.stack([r[name] for r in ready.values()])
                        for name in ("pixels", "reference", "sizes")
                    }
                    moments, features = self._encode(rows["pixels"], rows["reference"])
                    cache.put(list(ready), {"moments": moments, "features": features, "sizes": rows["sizes"]})
                bar.update(len(group))
