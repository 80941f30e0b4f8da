"""The order of a training's pictures, independent of workers and interruptions.

A training is a function of the positions 0, 1, 2, ... and nothing else: position p is picture p mod N of
epoch p div N, with a random generator of its own. Optimizer step s covers G positions from s·G on, G being
processes · micro steps · batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..encoders.clip import normalised
from ..encoders.spec import EncoderSpec
from ..errors import DataError
from ..pictures import images
from .cache import Cache
from .faces import FaceEncoder
from .source import BrokenPicture, Item, Source


def draws(seed: int, position: int) -> torch.Generator:
    """The random generator of one position; neighbours are independent."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Preparation:
    """Turns a sample's pictures into tensors, in a worker. resolution: side of the target, pixels."""

    resolution: int
    encoder: EncoderSpec | FaceEncoder

    def __call__(self, item: Item) -> dict[str, Tensor]:
        """pixels [3, R, R] in -1..1; reference [3, S, S], normalised, or the aligned crop of a face; sizes [6] of SDXL:
        original height and width, top and left of the crop, height and width of the target. Raises BrokenPicture."""
        picture, corner = square(item.picture, self.resolution)
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        height, width = item.picture.height, item.picture.width
        sizes = torch.tensor([height, width, *corner, self.resolution, self.resolution], dtype=torch.float32)
        return {
            "pixels": pixels.contiguous(), "reference": self._reference(item), "sizes": sizes
        }  # fmt: skip

    def _reference(self, item: Item) -> Tensor:
        """Raises BrokenPicture without a face, where one is wanted."""
        if isinstance(self.encoder, EncoderSpec):
            return normalised(images.fit(item.reference, self.encoder.image_size, "crop"), self.encoder)[0]
        return self.encoder.reference(item)


def square(picture: Image.Image, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The centre crop with the shorter edge resized to ``side``, and its (top, left)."""
    scale = side / min(picture.size)
    width, height = (max(side, round(edge * scale)) for edge in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    cut = (left, top, left + side, top + side)
    if scale == 1:
        return picture.crop(cut), (top, left)
    if max(width, height) <= 16 * side:
        return picture.resize((width, height), Image.Resampling.LANCZOS).crop(cut), (top, left)
    # Of a long strip only the middle: the whole could take gigabytes.
    per_x, per_y = picture.width / width, picture.height / height
    right, bottom = min((left + side) * per_x, picture.width), min((top + side) * per_y, picture.height)
    box = (left * per_x, top * per_y, right, bottom)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box), (top, left)


@dataclass(frozen=True)
class Sample:
    """The output of a worker. tensors: of Preparation or of the cache; empty when no picture of the data can be
    read; broken: skipped pictures, (key, reason)."""

    position: int
    key: str
    caption: str
    tensors: dict[str, Tensor]
    broken: tuple[tuple[str, str], ...]


class Positions(Dataset[Sample]):
    """Samples by position. A broken picture is replaced by the next one of its epoch."""

    def __init__(self, source: Source, prepare: Preparation, seed: int, cache: Cache | None = None,
                 texts: Cache | None = None) -> None:  # fmt: skip
        self.source, self.prepare, self.seed, self.cache, self.texts = source, prepare, seed, cache, texts
        self._order: tuple[int, Any] = (-1, None)

    def __getitem__(self, position: int) -> Sample:
        epoch, at = divmod(position, len(self.source))
        if self._order[0] != epoch:
            self._order = (epoch, self.source.order(epoch, self.seed))
        broken: list[tuple[str, str]] = []
        for offset in range(len(self.source)):
            index = int(self._order[1][(at + offset) % len(self.source)])
            try:
                tensors = self._tensors(index)
                return Sample(position, self.source.key(index), self.source.caption(index), tensors, tuple(broken))
            except BrokenPicture as error:
                broken.append((error.key, error.reason))
        return Sample(position, "", "", {}, tuple(broken))  # an exception would lose its type between processes

    def _tensors(self, index: int) -> dict[str, Tensor]:
        key = self.source.key(index)
        text = {} if self.texts is None else self.texts.get(index, key)
        if self.cache is None:
            return {**self.prepare(self.source.load(index)), **text}
        return {**self.cache.get(index, key), **text}


class PositionSampler(Sampler[int]):
    """The endless positions of one process from an optimizer step on: of micro step a, process r takes
    batch positions from s·G + a·world·batch + r·batch on."""

    def __init__(self, step: int, world: int, rank: int, batch: int, accumulate: int) -> None:
        self.step, self.world, self.rank, self.batch, self.accumulate = step, world, rank, batch, accumulate

    def __iter__(self) -> Iterator[int]:
        at = self.step * self.accumulate * self.world * self.batch + self.rank * self.batch
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
