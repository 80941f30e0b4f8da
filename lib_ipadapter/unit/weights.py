"""The weight of a unit at each layer and each step.

Layers are numbered as users know them: t is the index of a SpatialTransformer in the order of execution, input blocks,
middle block, output blocks. SD1.x and SD2.x have 16 (0-5, 6, 7-15), SDXL has 11 (0-3, 4, 5-10), however many attention
layers are in each. The named types and their formulas are those of ComfyUI_IPAdapter_plus.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnitError, UnsupportedModel

FACTORS = (-5.0, 5.0)  # of a layer or of a point of a curve
INTERPOLATIONS = ("linear", "step")
MAX_POINTS = 64


@dataclass(frozen=True)
class LayerWeight:
    """The weight at one SpatialTransformer, a factor of V'. ``precise``: the uncond rows get what the cond rows would
    get, and the cond rows get nothing."""

    weight: float
    precise: bool = False


@dataclass(frozen=True)
class LayerCounts:
    """The number of SpatialTransformers of a UNet and of its parts: [0, middle) is the input part, [middle, output)
    the middle, [output, count) the output part."""

    count: int
    middle: int
    output: int

    def part(self, t: int) -> str:
        """ "input", "middle" or "output"."""
        return "input" if t < self.middle else "middle" if t < self.output else "output"


SD = LayerCounts(16, 6, 7)
SDXL = LayerCounts(11, 4, 5)

# type: factor of the weight at layer t
_FACTORS: dict[str, Callable[[int, LayerCounts], float]] = {
    "linear": lambda t, counts: 1.0,
    "ease in": lambda t, counts: 0.05 + 0.95 * (1 - t / counts.count),
    "ease out": lambda t, counts: 0.05 + 0.95 * t / counts.count,
    "ease in-out": lambda t, counts: 0.05 + 0.95 * (1 - _from_centre(t, counts)),
    "reverse in-out": lambda t, counts: 0.05 + 0.95 * _from_centre(t, counts),
    "weak input": lambda t, counts: 0.2 if counts.part(t) == "input" else 1.0,
    "weak middle": lambda t, counts: 0.2 if counts.part(t) == "middle" else 1.0,
    "weak output": lambda t, counts: 0.2 if counts.part(t) == "output" else 1.0,
    "strong middle": lambda t, counts: 1.0 if counts.part(t) == "middle" else 0.2,
}

# (type, model): weight and composition weight to the weights by layer; layers that are not listed are 0
_Named = Callable[[float, float], dict[int, float]]
_SD_STYLE = (0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15)
_NAMED: dict[tuple[str, LayerCounts], _Named] = {
    ("style transfer", SD): lambda w, c: dict.fromkeys(_SD_STYLE, w),
    ("style transfer", SDXL): lambda w, c: {6: w},
    ("composition", SD): lambda w, c: {4: 0.25 * w, 5: w},
    ("composition", SDXL): lambda w, c: {3: w},
    ("strong style transfer", SD): lambda w, c: _all(SD, w, {4: 0.0, 5: 0.0}),
    ("strong style transfer", SDXL): lambda w, c: _all(SDXL, w, {3: 0.0}),
    ("style and composition", SD): lambda w, c: {**dict.fromkeys(_SD_STYLE, w), 4: 0.25 * c, 5: c},
    ("style and composition", SDXL): lambda w, c: {3: c, 6: w},
    ("strong style and composition", SD): lambda w, c: _all(SD, w, {4: c, 5: c}),
    ("strong style and composition", SDXL): lambda w, c: _all(SDXL, w, {3: c}),
    ("style transfer precise", SD): lambda w, c: {**dict.fromkeys(_SD_STYLE, w), 4: 0.25 * c, 5: c},
    ("style transfer precise", SDXL): lambda w, c: {3: c, 6: w},
    ("composition precise", SD): lambda w, c: _all(
        SD, c, {4: 0.25 * w, 5: w, 6: 0.1 * c, 7: 0.1 * c, 8: 0.1 * c}
    ),
    ("composition precise", SDXL): lambda w, c: _all(SDXL, 0.1 * c, {3: w, 6: c}),
}  # fmt: skip
_COMPOSITION = {SD: (4, 5), SDXL: (3,)}
# Types that weigh style and composition apart
BOTH = ("style and composition", "strong style and composition", "style transfer precise", "composition precise")
TYPES = (*_FACTORS, *dict.fromkeys(kind for kind, _ in _NAMED))


def _from_centre(t: int, counts: LayerCounts) -> float:
    half = counts.count / 2
    return abs(t - half) / half


def _all(counts: LayerCounts, weight: float, others: Mapping[int, float]) -> dict[int, float]:
    return {**dict.fromkeys(range(counts.count), weight), **others}


@dataclass(frozen=True)
class LayerRule:
    """A unit's fields about layers: a named type, or a table of factors by layer, where layers that are not listed are
    0."""

    kind: str = "linear"
    composition: float = 1.0
    table: tuple[tuple[int, float], ...] = ()

    def at(self, weight: float, counts: LayerCounts) -> tuple[LayerWeight, ...]:
        """The weights of all layers for a unit of this weight. Weight 0 is the base model, whatever the composition
        weight. Raises UnitError for a layer that the model does not have, UnsupportedModel for a type that is not
        defined for its layers."""
        if not weight:
            return (LayerWeight(0.0),) * counts.count
        if self.table:
            return self._from_table(weight, counts)
        if factor := _FACTORS.get(self.kind):
            return tuple(LayerWeight(weight * factor(t, counts)) for t in range(counts.count))
        named = _NAMED.get((self.kind, counts))
        if named is None:
            raise UnsupportedModel(
                f"weight_type {self.kind!r} is defined for the {SD.count} layers of SD1.x and SD2.x and the "
                f"{SDXL.count} "
                f"of SDXL; the loaded model has {counts.count}. Choose another type, or give the layers' weights",
                value=self.kind,
                field="weight_type",
            )
        weights = named(weight, self.composition)
        return tuple(LayerWeight(weights.get(t, 0.0), self._is_precise(t, counts)) for t in range(counts.count))

    def _from_table(self, weight: float, counts: LayerCounts) -> tuple[LayerWeight, ...]:
        highest = max(t for t, _ in self.table)
        if highest >= counts.count:
            expected = f"layers from 0 to {counts.count - 1}, which the loaded model has"
            raise UnitError("layers", layers_text(self.table), expected)
        factors = dict(self.table)
        return tuple(LayerWeight(weight * factors.get(t, 0.0)) for t in range(counts.count))

    def _is_precise(self, t: int, counts: LayerCounts) -> bool:
        if self.kind == "style transfer precise":
            return t in _COMPOSITION[counts]
        return self.kind == "composition precise" and t not in _COMPOSITION[counts]


# steps


@dataclass(frozen=True)
class Curve:
    """A factor of the weight over the sampling: points (fraction 0..1, factor) in rising order. Before the first and
    after the last it is constant; between two it is linear, or with "step" that of the earlier one."""

    points: tuple[tuple[float, float], ...] = ()
    interpolation: str = "linear"

    def at(self, fraction: float) -> float:
        """The factor at a fraction of the sampling; 1 without points."""
        if not self.points:
            return 1.0
        # 1e-6: 3 of 10 steps is 0.3, whatever the rounding.
        after = bisect.bisect_right([x for x, _ in self.points], fraction + 1e-6)
        if after == 0 or after == len(self.points):
            return self.points[max(after - 1, 0)][1]
        (x, y), (next_x, next_y) = self.points[after - 1 : after + 1]
        if self.interpolation == "step":
            return y
        return y + (next_y - y) * min(max((fraction - x) / (next_x - x), 0.0), 1.0)


EVENLY, ALWAYS = LayerRule(), Curve()

# text

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LAYERS_EXPECTED = (
    '"" (all layers), or layer:factor pairs such as "0:1, 3-5:0.5"; layers counted from 0 in the order of execution, '
    f"each once, factors from {FACTORS[0]:g} to {FACTORS[1]:g}; layers that are not listed do not act"
)
CURVE_EXPECTED = (
    '"" (always 1), or fraction:factor points such as "0:0, 0.3:1, 1:0.5"; fractions from 0 to 1 in rising order, '
    f"factors from {FACTORS[0]:g} to {FACTORS[1]:g}, at most {MAX_POINTS} points"
)


def parse_layers(value: Any) -> str:
    """``layers`` in its normal form, from a text or an object {layer: factor}. Raises UnitError."""
    table: dict[int, float] = {}
    for key, factor in _pairs(value, "layers", LAYERS_EXPECTED):
        match = re.fullmatch(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?", key)
        if not match:
            raise UnitError("layers", value, LAYERS_EXPECTED)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or any(t in table for t in range(first, last + 1)):
            raise UnitError("layers", value, LAYERS_EXPECTED)
        table |= dict.fromkeys(range(first, last + 1), factor)
    return layers_text(sorted(table.items()))


def layers_text(table: Sequence[tuple[int, float]]) -> str:
    """The normal form of a table: neighbouring layers of one factor as a range."""
    runs: list[list[Any]] = []
    for t, factor in table:
        if runs and runs[-1][1] == t - 1 and runs[-1][2] == factor:
            runs[-1][1] = t
        else:
            runs.append([t, t, factor])
    return ", ".join(f"{a}:{_format(factor)}" if a == b else f"{a}-{b}:{_format(factor)}" for a, b, factor in runs)


def layers_table(text: str) -> tuple[tuple[int, float], ...]:
    """The (layer, factor) pairs of a normal form."""
    table: list[tuple[int, float]] = []
    for part in filter(None, text.split(", ")):
        key, _, factor = part.partition(":")
        first, _, last = key.partition("-")
        table += [(t, float(factor)) for t in range(int(first), int(last or first) + 1)]
    return tuple(table)


def parse_curve(value: Any) -> str:
    """``curve`` in its normal form, from a text or a list of [fraction, factor]. Raises UnitError."""
    points: list[tuple[float, float]] = []
    for key, factor in _pairs(value, "curve", CURVE_EXPECTED):
        fraction = float(key) if re.fullmatch(_NUMBER, key) else math.nan
        if not 0 <= fraction <= 1 or (points and fraction <= points[-1][0]):
            raise UnitError("curve", value, CURVE_EXPECTED)
        points.append((fraction, factor))
    if len(points) > MAX_POINTS:
        raise UnitError("curve", f"{len(points)} points", CURVE_EXPECTED)
    return ", ".join(f"{_format(x)}:{_format(y)}" for x, y in points)


def curve_points(text: str) -> tuple[tuple[float, float], ...]:
    """The (fraction, factor) points of a normal form."""
    pairs = (part.partition(":") for part in filter(None, text.split(", ")))
    return tuple((float(x), float(y)) for x, _, y in pairs)


def _pairs(value: Any, field: str, expected: str) -> list[tuple[str, float]]:
    """(key, factor) pairs of a text, an object or a list of pairs. Raises UnitError."""
    if isinstance(value, str):
        parts = [part for part in re.split(r"[,;\n]", value) if part.strip()]
        pairs: list[Any] = [part.split(":") for part in parts]
    else:
        pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or len(pairs) > 1000:
        raise UnitError(field, value, expected)
    parsed = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(isinstance(x, bool) for x in pair):
            raise UnitError(field, value, expected)
        key, factor = (str(x).strip() for x in pair)
        if not re.fullmatch(_NUMBER, factor) or not FACTORS[0] <= float(factor) <= FACTORS[1]:
            raise UnitError(field, value, expected)
        parsed.append((key, float(factor)))
    return parsed


def _format(number: float) -> str:
    """The shortest text that parses to the same number."""
    return str(int(number)) if number == int(number) else repr(number)
