"""Means with bootstrap confidence intervals over references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
_CHUNK = 1 << 22  # draws at a time: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` references and its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = SEED) -> Estimate | None:
    """The mean of one value a reference, with the percentile interval of means of resampled references
    (Efron 1979). NaN is a reference without a value; None when all are."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    count = len(array)
    if not count:
        return None
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    means = np.concatenate([
        array[rng.integers(0, count, (min(rows, resamples - done), count))].mean(axis=1)
        for done in range(0, resamples, rows)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(array.mean()), float(low), float(high), count)
