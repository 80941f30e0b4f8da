"""Aspect buckets: pictures keep their shape, and a batch holds pictures of one bucket.

A bucket is a size in pixels of about resolution² in area. A training takes groups of W pictures, W being
processes · batch: what all processes learn from in one micro step. Each bucket's pictures are an endless row, epoch
after epoch, each in an order of its own, and a group is W neighbours of that row. So a bucket of n pictures has whole
groups floor(e · n / W) to floor((e + 1) · n / W) in epoch e, which are mixed with those of the other buckets; what is
left at the end of an epoch begins the next. Any group is found without those before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .source import Source, rng

Size = tuple[int, int]  # width, height
LONGEST = 2.0  # side of a bucket, in resolutions
_MIXED = 104_729  # sets the order of the groups apart from that of the pictures


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """(width, height) of all buckets: sides are multiples of ``step``, half to twice the resolution; none has more than
    resolution² pixels; for each width the tallest. The square is among them where the resolution is such a multiple."""
    first = math.ceil(resolution / LONGEST / step) * step
    sides = range(max(step, first), int(resolution * LONGEST) + 1, step)
    found: set[Size] = set()
    for side in sides:
        other = min(resolution**2 // side // step * step, sides[-1])
        if other >= sides[0]:
            found |= {(side, other), (other, side)}
    return sorted(found)


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket of the ratio of width to height that is nearest to that of ``size``; of equals the largest."""
    ratio = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 9), -b[0] * b[1], b))


@dataclass(frozen=True)
class Cut:
    """How a picture covers a bucket. resized: its size before the cut; left, top: of the cut, pixels of that size."""

    resized: Size
    left: int
    top: int


def cut(size: Size, bucket: Size, across: float = 0.5, down: float = 0.5) -> Cut:
    """The picture at the least size that covers the bucket. across, down: 0..1, where the cut lies; 0.5: middle."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (max(least, round(edge * scale)) for edge, least in zip(size, bucket, strict=True))
    left, top = math.floor((width - bucket[0]) * across), math.floor((height - bucket[1]) * down)
    return Cut((width, height), left, top)


def size_conditions(size: Size, bucket: Size, made: Cut) -> tuple[int, int, int, int, int, int]:
    """SDXL's conditions (arXiv 2307.01952, 2.2), as its own code orders them: height and width of the original, top and
    left of the cut, height and width of the target."""
    return size[1], size[0], made.top, made.left, bucket[1], bucket[0]


class BucketPlan:
    """Which picture is at which position. ``sizes``: (width, height) of each picture, None of those that cannot be
    read; start: the first position; group: W."""

    def __init__(self, source: Source, sizes: Sequence[Size | None], buckets: Sequence[Size], seed: int, group: int,
                 start: int = 0) -> None:  # fmt: skip
        self.source, self.seed, self.group, self.start = source, seed, group, start
        near = {size: nearest(size, buckets) for size in set(sizes) if size is not None}
        self.of = [None if size is None else near[size] for size in sizes]
        used = sorted({bucket for bucket in self.of if bucket is not None})
        self.numbers = np.array([-1 if bucket is None else used.index(bucket) for bucket in self.of])
        self.used = used
        self.counts = [int((self.numbers == number).sum()) for number in range(len(used))]
        self._orders = lru_cache(maxsize=3)(self._order)
        self._mixes = lru_cache(maxsize=2)(self._mix)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_orders", "_mixes")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._orders = lru_cache(maxsize=3)(self._order)
        self._mixes = lru_cache(maxsize=2)(self._mix)

    def candidates(self, position: int) -> Iterator[int]:
        """``Plan.candidates``; the next of its bucket stands in for a broken picture. Of a bucket that is broken
        altogether it is one of the next bucket, as for the others of the group."""
        group, at = divmod(position - self.start, self.group)
        epoch = self._epoch(group)
        number, row = self._mixes(epoch)[group - self._before(epoch)]
        place = row * self.group + at
        orders = self._orders(place // self.counts[number])
        for order in (*orders[number:], *orders[:number]):
            for offset in range(len(order)):
                yield int(order[(place + offset) % len(order)])

    def _before(self, epoch: int) -> int:
        """Groups before an epoch."""
        return sum(epoch * count // self.group for count in self.counts)

    def _epoch(self, group: int) -> int:
        """The epoch in which a group is."""
        low, high = 0, 1
        while self._before(high) <= group:
            low, high = high, 2 * high
        while high - low > 1:  # _before(low) <= group < _before(high)
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) <= group else (low, middle)
        return low

    def _mix(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, group of that bucket) of an epoch's groups, in their order."""
        found = [
            (number, row)
            for number, count in enumerate(self.counts)
            for row in range(epoch * count // self.group, (epoch + 1) * count // self.group)
        ]
        return [found[i] for i in rng(self.seed + _MIXED, epoch).permutation(len(found))]

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Of each bucket the order of its pictures in an epoch."""
        order = self.source.order(epoch, self.seed)
        own = self.numbers[order]
        return [order[own == number] for number in range(len(self.used))]
