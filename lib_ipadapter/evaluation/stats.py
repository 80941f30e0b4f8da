"""Means over references with 95 % confidence intervals, right for few references too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
INTERVALS = {
    "means": "Student's t over references",
    "hit rates": "Wilson's score interval over references",
    "differences": "paired by reference: Student's t; of hit rates Bonett and Price's adjusted Wald interval (2012)",
}


@dataclass(frozen=True)
class Values:
    """A measure's value of each reference (NaN: none), and whether it is a rate: see ``estimate``."""

    each: Sequence[float]
    rate: bool = False

    def estimate(self) -> Estimate | None:
        """The mean with its interval; None without a value."""
        return estimate(self.each, self.rate)

    def minus(self, other: Values) -> Estimate | None:
        """The mean of the paired differences with its interval; None without a pair."""
        return difference(self.each, other.each, self.rate and other.rate)


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` references and its 95 % confidence interval; None: one reference tells no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} [–]"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float], rate: bool = False) -> Estimate | None:
    """The mean of one value per reference. NaN is a reference without a value; None when all are.

    rate: the values are hits and misses, or the fraction of hits among a reference's pictures, in 0..1. Their interval
    is Wilson's with the references as the trials, which is on the safe side for several pictures per reference.
    """
    known = _known(values)
    if not len(known):
        return None
    return _wilson(known) if rate else _student(known)


def difference(ours: Sequence[float], theirs: Sequence[float], rate: bool = False) -> Estimate | None:
    """The mean of ``ours`` - ``theirs``, paired by reference; references where one is NaN are left out."""
    paired = _known(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))
    if not len(paired):
        return None
    return _adjusted_wald(paired) if rate else _student(paired)


def _known(values: Sequence[float] | Numbers) -> Numbers:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _student(values: Numbers) -> Estimate:
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def _wilson(values: Numbers) -> Estimate:
    """Wilson, J. Am. Stat. Assoc. 22 (1927): the rates p that the observed one is no further from than z errors of
    p."""
    n, p = len(values), float(values.mean())
    scale = 1 + _Z**2 / n
    centre = (p + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def _adjusted_wald(values: Numbers) -> Estimate:
    """Bonett and Price, J. Educ. Behav. Stat. 37 (2012): Wald's interval with one pair more for each side."""
    n = len(values)
    centre = float(values.sum()) / (n + 2)
    half = _Z * math.sqrt((float((values**2).sum() + 2) / (n + 2) - centre**2) / (n + 2))
    return Estimate(float(values.mean()), max(-1.0, centre - half), min(1.0, centre + half), n)


def t_quantile(freedom: int) -> float:
    """The point that Student's t with ``freedom`` degrees is below with probability (1 + LEVEL) / 2."""
    if freedom > 1000:  # two terms of the expansion in 1 / freedom: exact to six digits
        return _Z + (_Z**3 + _Z) / (4 * freedom)
    low, high = 0.0, math.pi / 2  # of atan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < LEVEL else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _t_within(angle: float, freedom: int) -> float:
    """P(|T| < tan(angle) * sqrt(freedom)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
