"""Features on demand: one encoder in memory, what was encoded is remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..cache import LRU
from ..errors import EncoderMissing
from ..pictures import images
from .clip import Device, Features, ImageEncoder
from .find import find_encoder
from .spec import ENCODERS, Feature

if TYPE_CHECKING:
    from ..adapters.variant import VariantSpec

# A penultimate feature of ViT-H takes 1.3 MB, 2.2 MB as the allocator scatters them (measured): 27 MB in all
DEFAULT_ENTRIES = 12


class FeatureCache(LRU[Tensor]):
    """Features by picture, fit, encoder file and kind; the ones used last stay."""

    def __init__(self, max_entries: int | Callable[[], int] = DEFAULT_ENTRIES) -> None:
        super().__init__(max_entries if callable(max_entries) else lambda: max_entries)


class EncoderPool:
    """At most one encoder in memory, used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._encoder: ImageEncoder | None = None
        self._key: Hashable = None

    def encode(
        self,
        path: Path,
        picture: Image.Image | None,
        feature: Feature | None = None,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Features:
        """Features of ``picture``, or with None the unconditional ones, by the encoder in ``path``."""
        with self._lock:
            encoder = self.get(path, device, dtype)
            return encoder.unconditional(feature) if picture is None else encoder.encode(picture, feature)

    def get(self, path: Path, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> ImageEncoder:
        """The encoder in ``path`` on ``device``; another one is let go first."""
        with self._lock:
            key = (identity(path), dtype)
            if self._encoder is None or self._key != key:
                self.release()
                self._encoder, self._key = ImageEncoder.load(path, device, dtype), key
            return self._encoder.to(device)

    @property
    def loaded(self) -> ImageEncoder | None:
        """The encoder in memory, if any."""
        return self._encoder

    def offload(self) -> None:
        """Moves the encoder off the accelerator."""
        with self._lock:
            if self._encoder is not None:
                self._encoder.to("cpu")

    def release(self) -> None:
        """Forgets the encoder."""
        with self._lock:
            self._encoder, self._key = None, None


class EncoderSource:
    """``features.FeatureSource`` by encoder files found in folders, behind a pool and a cache."""

    def __init__(
        self,
        folders: Sequence[Path] | Callable[[], Sequence[Path]],
        pool: EncoderPool | None = None,
        cache: FeatureCache | None = None,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._folders = folders if callable(folders) else lambda: folders
        self.pool = pool if pool is not None else EncoderPool()
        self.cache = cache if cache is not None else FeatureCache()
        self.device, self.dtype = device, dtype

    def features(self, picture: Image.Image, fit: str, spec: VariantSpec) -> Tensor:
        """The feature that ``spec`` takes, of an RGB picture of any size. Raises EncoderError."""
        path = self.path(spec)

        def make() -> Tensor:
            square = images.fit(picture, ENCODERS[spec.encoder].image_size, fit)
            return self._encode(path, square, spec.feature)

        return self.cache.get((images.content_hash(picture), fit, *self._key(path, spec)), make)

    def unconditional(self, spec: VariantSpec) -> Tensor:
        """The same feature of no picture. The pooled one is zeros, for which no encoder is loaded."""
        if spec.feature == "pooled":
            return torch.zeros(1, spec.feature_width)
        path = self.path(spec)
        return self.cache.get(
            (None, "", *self._key(path, spec)), lambda: self._encode(path, None, spec.feature)
        )

    def side(self, spec: VariantSpec) -> int:
        """Side of the encoder's square, pixels."""
        return ENCODERS[spec.encoder].image_size

    def path(self, spec: VariantSpec) -> Path:
        """The encoder file that ``spec`` needs. Raises EncoderMissing; cheap, so call it before sampling."""
        if spec.encoder and spec.encoder not in ENCODERS:
            raise EncoderMissing(
                f"the adapter was trained with the image encoder {spec.encoder}, which is not among the known ones "
                f"({', '.join(ENCODERS)}); put its weights and its open_clip config, {spec.encoder}.json, side by side "
                "into the folder of the encoders",
                value=spec.encoder,
            )
        if not spec.encoder:
            raise EncoderMissing(
                f"the adapter takes {spec.feature} features of width {spec.feature_width}, which no known "
                f"image encoder gives; known are {', '.join(ENCODERS)}",
                value=spec.encoder,
            )
        return find_encoder(spec.encoder, self._folders())

    def _encode(self, path: Path, square: Image.Image | None, feature: Feature) -> Tensor:
        return self.pool.encode(path, square, feature, self.device, self.dtype).of(feature)

    def _key(self, path: Path, spec: VariantSpec) -> tuple[Hashable, ...]:
        return identity(path), spec.feature, self.dtype


def identity(path: Path) -> tuple[str, int, int]:
    """Path, time (ns) and size (bytes) of a file: another file in its place is another encoder."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size
