"""The order of a training's pictures, independent of workers and interruptions.

A training is a function of the positions 0, 1, 2, ... and nothing else: position p is picture p mod N of
epoch p div N (with aspect buckets: buckets.py), with a random generator of its own.
Optimizer step s covers G positions from s·G on, G being processes · micro steps · batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..encoders.clip import normalised
from ..encoders.spec import EncoderSpec
from ..errors import DataError
from ..pictures import images
from .augment import Augmentation, Look
from .buckets import Cut, Size, cut, nearest, size_conditions
from .cache import Cache
from .faces import FaceEncoder
from .source import BrokenPicture, Item, Source


def draws(seed: int, position: int) -> torch.Generator:
    """The random generator of one position; neighbours are independent."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Preparation:
    """Turns a sample's pictures into tensors, in a worker. resolution: side of the target, pixels; buckets: (width,
    height) of the targets where they keep their shape."""

    resolution: int
    encoder: EncoderSpec | FaceEncoder
    buckets: tuple[Size, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)

    def seen(self, item: Item, look: Look) -> dict[str, Tensor]:
        """``__call__`` of the item as it looks this time."""
        return self(self.augmentation.seen(item, look), look.across, look.down)

    def seen_reference(self, item: Item, look: Look) -> dict[str, Tensor]:
        """The reference alone, for targets that are cached."""
        return {"reference": self._reference(self.augmentation.seen(item, look))}

    def __call__(self, item: Item, across: float = 0.5, down: float = 0.5) -> dict[str, Tensor]:
        """pixels [3, H, W] in -1..1; reference [3, S, S], normalised, or the aligned crop of a face; sizes [6] of SDXL:
        original height and width, top and left of the crop, height and width of the target. Raises BrokenPicture."""
        bucket = nearest(item.picture.size, self.buckets) if self.buckets else (self.resolution, self.resolution)
        picture, made = covered(item.picture, bucket, across, down)
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        sizes = torch.tensor(size_conditions(item.picture.size, bucket, made), dtype=torch.float32)
        return {
            "pixels": pixels.contiguous(), "reference": self._reference(item), "sizes": sizes
        }  # fmt: skip

    def _reference(self, item: Item) -> Tensor:
        """Raises BrokenPicture without a face, where one is wanted."""
        if isinstance(self.encoder, EncoderSpec):
            return normalised(images.fit(item.reference, self.encoder.image_size, "crop"), self.encoder)[0]
        return self.encoder.reference(item)


def covered(picture: Image.Image, bucket: Size, across: float = 0.5, down: float = 0.5) -> tuple[Image.Image, Cut]:
    """A part of the picture at the least size that covers the bucket, and where it lies."""
    made = cut(picture.size, bucket, across, down)
    (width, height), left, top = made.resized, made.left, made.top
    box = (left, top, left + bucket[0], top + bucket[1])
    if made.resized == picture.size:
        return picture.crop(box), made
    if max(made.resized) <= 16 * max(bucket):
        return picture.resize(made.resized, Image.Resampling.LANCZOS).crop(box), made
    # Of a long strip only the middle: the whole could take gigabytes.
    per_x, per_y = picture.width / width, picture.height / height
    right, bottom = min(box[2] * per_x, picture.width), min(box[3] * per_y, picture.height)
    return picture.resize(bucket, Image.Resampling.LANCZOS, box=(left * per_x, top * per_y, right, bottom)), made


@dataclass(frozen=True)
class Sample:
    """The output of a worker. tensors: of Preparation or of the cache; empty when no picture of the data can be
    read; broken: skipped pictures, (key, reason)."""

    position: int
    key: str
    caption: str
    tensors: dict[str, Tensor]
    broken: tuple[tuple[str, str], ...]


class Plan(Protocol):
    """Which picture is at which position."""

    def candidates(self, position: int) -> Iterator[int]:
        """The picture of a position, and behind it those that stand in for it where it is broken."""


class EpochPlan:
    """Epoch after epoch, each in an order of its own; the next one of its epoch stands in for a broken picture."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self._order: tuple[int, Any] = (-1, None)

    def candidates(self, position: int) -> Iterator[int]:
        """``Plan.candidates``."""
        epoch, at = divmod(position, len(self.source))
        if self._order[0] != epoch:
            self._order = (epoch, self.source.order(epoch, self.seed))
        for offset in range(len(self.source)):
            yield int(self._order[1][(at + offset) % len(self.source)])


class Positions(Dataset[Sample]):
    """Samples by position. cache, texts: where what was encoded before is."""

    def __init__(self, source: Source, prepare: Preparation, seed: int, cache: Cache | None = None,
                 texts: Cache | None = None, plan: Plan | None = None) -> None:  # fmt: skip
        self.source, self.prepare, self.cache, self.texts = source, prepare, cache, texts
        self.plan, self.seed = plan or EpochPlan(source, seed), seed

    def __getitem__(self, position: int) -> Sample:
        broken: list[tuple[str, str]] = []
        for index in self.plan.candidates(position):
            try:
                tensors = self._tensors(index, position)
                return Sample(position, self.source.key(index), self.source.caption(index), tensors, tuple(broken))
            except BrokenPicture as error:
                broken.append((error.key, error.reason))
        return Sample(position, "", "", {}, tuple(broken))  # an exception would lose its type between processes

    def _tensors(self, index: int, position: int) -> dict[str, Tensor]:
        key = self.source.key(index)
        text = {} if self.texts is None else self.texts.get(index, key)
        look = self.prepare.augmentation.look(self.seed, position)
        if self.cache is None:
            return {**self.prepare.seen(self.source.load(index), look), **text}
        stored = {**self.cache.get(index, key), **text}
        if "features" in stored:
            return stored
        return {**stored, **self.prepare.seen_reference(self.source.load(index), look)}


class PositionSampler(Sampler[int]):
    """The endless positions of one process from an optimizer step on: of micro step a, process r takes
    batch positions from start + s·G + a·world·batch + r·batch on."""

    def __init__(self, step: int, world: int, rank: int, batch: int, accumulate: int, start: int = 0) -> None:
        self.step, self.world, self.rank, self.batch, self.accumulate = step, world, rank, batch, accumulate
        self.start = start

    def __iter__(self) -> Iterator[int]:
        at = self.start + self.step * self.accumulate * self.world * self.batch + self.rank * self.batch
        while True:
            yield from range(at, at + self.batch)
            at += self.world * self.batch


def loader(positions: Positions, sampler: PositionSampler, workers: int, prefetch: int) -> Iterator[list[Sample]]:
    """Endless batches, independent of ``workers``. Raises DataError when no picture can be read."""
    batches: DataLoader[Any] = DataLoader(
        positions, batch_size=sampler.batch, sampler=sampler, num_workers=workers, collate_fn=list,
        prefetch_factor=prefetch if workers else None, generator=torch.Generator(),
    )  # fmt: skip
    for samples in batches:
        for sample in samples:
            if not sample.tensors:
                key, reason = sample.broken[0]
                raise DataError(key, f"not one picture of the data can be read ({reason})")
        yield samples


def stacked(samples: Sequence[Sample], name: str) -> Tensor:
    """One tensor of a batch, [B, ...]."""
    return torch.stack([sample.tensors[name] for sample in samples])
