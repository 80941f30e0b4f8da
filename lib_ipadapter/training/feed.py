"""Feed: batches of latents, features and captions, made as they are needed or taken from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..encoders.clip import ImageEncoder
from ..errors import ConfigError, DataError
from .augment import Augmentation
from .base import Base, Sizes, Text
from .buckets import BucketPlan, Size, bucket_sizes
from .cache import Cache
from .config import TrainConfig
from .data import Plan, Positions, PositionSampler, Preparation, Sample, draws, loader, stacked
from .encoding import Encoding
from .run_folder import RunFolder
from .source import BrokenPicture, Source
from .sources import open_source
from .stages import Row, Stage, planned, read
from .stored import Storing, empty_text, latents


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
    text: Text | None = None  # from the cache

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one picture: [4, h, w]."""
        _, channels, height, width = self.moments.shape
        return channels // 2, height, width


def _text(samples: Sequence[Sample]) -> Text:
    pooled = stacked(samples, "pooled") if "pooled" in samples[0].tensors else None
    return Text(stacked(samples, "tokens"), pooled)


class Feed:
    """A training's data for this process. Raises FileError, EncoderError, ConfigError."""

    def __init__(self, config: TrainConfig, base: Base, accelerator: Any, folder: RunFolder) -> None:
        self.config, self.base, self.accelerator, self.folder = config, base, accelerator, folder
        self.source: Source = open_source(config.data)
        self.encoding = Encoding(config, base)
        self.encoder, self.feature = self.encoding.encoder, self.encoding.feature
        self.nothing, self.digest = self.encoding.nothing, self.encoding.digest
        rows = read(config.stages) if config.stages else [
            Row(config.resolution or base.resolution, config.steps, config.batch)
        ]  # fmt: skip
        self.stages = planned(rows, config.accumulate * int(accelerator.num_processes))
        self.resolution = self.stages[-1].resolution
        self._check_sides()
        self.broken = 0
        self._listed: set[str] = set()
        self.caches: dict[tuple[int, bool], Cache] = {}  # by resolution and whether they are squares
        self.sizes: list[Size | None] = []
        self.augmentation = Augmentation(
            config.flip, config.random_crop, config.reference_crop, config.reference_flip, config.reference_colour,
            config.reference_background,
        )  # fmt: skip
        self.texts: Cache | None = None
        self.no_text: Text | None = None

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

    def _check_sides(self) -> None:
        multiple, step = self.base.multiple, self.config.bucket_step
        if self.config.buckets and step % multiple:
            raise ConfigError("bucket_step", step, f"a multiple of {multiple} for this base")
        for stage in self.stages:
            keeps = self.config.buckets and not stage.square
            if keeps and stage.resolution < step:
                raise ConfigError("resolution", stage.resolution, f"at least bucket_step, {step}")
            if not keeps and stage.resolution % multiple:
                raise ConfigError("resolution", stage.resolution, f"a multiple of {multiple} for this base")

    def pictures(self, step: int) -> int:
        """Pictures of an optimizer step (counted from 0), over all processes."""
        stage = next((stage for stage in self.stages if step < stage.end), self.stages[-1])
        return stage.batch * self.config.accumulate * int(self.accelerator.num_processes)

    def batches(self, step: int) -> Iterator[Batch]:
        """This process's micro batches from an optimizer step on; of the last stage, without end."""
        config, world = self.config, self.accelerator
        for stage in self.stages:
            last = stage is self.stages[-1]
            if step >= stage.end and not last:
                continue
            sampler = PositionSampler(
                step - stage.first,
                world.num_processes,
                world.process_index,
                stage.batch,
                config.accumulate,
                stage.start,
            )
            kind = stage.resolution, stage.square
            positions = Positions(
                self.source, self.preparation(*kind), config.seed, self.caches.get(kind),
                self.texts, self._plan(stage),
            )  # fmt: skip
            count = None if last else (stage.end - step) * config.accumulate
            for samples in islice(loader(positions, sampler, config.workers, config.prefetch), count):
                self._list_broken(samples)
                yield self._batch(samples)
            step = stage.end

    def _plan(self, stage: Stage) -> Plan | None:
        if not self.config.buckets or stage.square:
            return None
        buckets = bucket_sizes(stage.resolution, self.config.bucket_step)
        group = stage.batch * int(self.accelerator.num_processes)
        return BucketPlan(self.source, self.sizes, buckets, self.config.seed, group, stage.start)

    def preparation(self, resolution: int, square: bool = False) -> Preparation:
        """How pictures become tensors."""
        shaped = self.config.buckets and not square
        buckets = tuple(bucket_sizes(resolution, self.config.bucket_step)) if shaped else ()
        return Preparation(resolution, self.encoder.spec, buckets, self.augmentation)

    def _list_broken(self, samples: Sequence[Sample]) -> None:
        """Counts and lists the pictures that were skipped, each once."""
        for key, reason in (pair for sample in samples for pair in sample.broken):
            if key not in self._listed:
                self._listed.add(key)
                self.broken += 1
                self.folder.broken(key, reason)

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        if "moments" not in samples[0].tensors:
            moments = self.base.moments(stacked(samples, "pixels"))
        else:
            moments = stacked(samples, "moments")
            if moments.ndim == 2:
                rows = zip(moments, stacked(samples, "sizes"), strict=True)
                moments = torch.stack([latents(row, sizes, self.base.factor) for row, sizes in rows])
        if "features" in samples[0].tensors:
            features = stacked(samples, "features")
        else:
            features = self.encoding.features(stacked(samples, "reference"))
        return Batch(
            keys=[sample.key for sample in samples],
            captions=[sample.caption for sample in samples],
            moments=moments,
            features=features,
            sizes=Sizes(stacked(samples, "sizes")) if self.base.sdxl else None,
            generators=[draws(self.config.seed, sample.position) for sample in samples],
            text=None if self.texts is None else _text(samples),
        )

    # caches

    def cached(self, batch: Batch) -> tuple[Text, Text] | None:
        """The batch's texts and the empty one, where they are cached."""
        return None if batch.text is None or self.no_text is None else (batch.text, self.no_text)

    def fill_cache(self) -> None:
        """Opens the caches that are asked for, and encodes what they lack, each process a part."""
        config = self.config
        place = Path(config.cache_dir) if config.cache_dir else Path(config.out) / "cache"
        storing = Storing(
            self.source, self.encoding, self.accelerator, self.folder, place, config.batch, Path(config.base)
        )
        if config.buckets:
            self.sizes = storing.sizes()
            if not any(self.sizes):
                raise DataError(config.data, "not one picture of the data can be read; broken.txt says why")
        if config.cache:
            for kind in dict.fromkeys((stage.resolution, stage.square) for stage in self.stages):
                self.caches[kind] = storing.pictures(self.preparation(*kind), config.cache_half)
            if not self.augmentation.of_reference:
                self.encoder.to("cpu")
        if config.cache_text:
            self.texts = storing.texts()
            self.no_text = empty_text(self.texts, len(self.source))
        self.rest()

    @property
    def needed(self) -> tuple[str, ...]:
        """The models beside the UNet that a step still asks for."""
        own = {"autoencoder": self.config.cache, "text encoder": self.config.cache_text}
        return tuple(name for name, cached in own.items() if not cached)

    def rest(self) -> None:
        """What is cached needs no model on the device any more."""
        self.base.keep(*self.needed)
