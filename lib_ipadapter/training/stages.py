"""Stages of a training: steps at one resolution with one batch, one stage after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import ConfigError

_FORM = re.compile(r"\s*(\d{2,4})\s*px\s*[x*]\s*(\d{1,9})\s*steps\s*[x*]\s*(\d{1,5})(\s+square)?\s*", re.IGNORECASE)
_EXPECTED = (
    "stages such as 512px x 200000steps x 16 square, 1024px x 50000steps x 4 (resolution, a multiple of 8 from 32 to "
    "4096; optimizer steps; batch of one process, to 65536), or in YAML a list of mappings with resolution, steps and "
    "batch"
)
_FIELDS = {"resolution", "steps", "batch"}
_LARGEST, _MOST_PICTURES = 4096, 65_536  # pixels, batch: as of the fields of these names


class Row(NamedTuple):
    """A stage as it is written. square: without buckets."""

    resolution: int
    steps: int
    batch: int
    square: bool = False


@dataclass(frozen=True)
class Stage:
    """resolution: pixels; steps: optimizer steps; batch: pictures per process and micro step; square: without buckets;
    first: its first step; start: its first position (pictures over all processes before it)."""

    resolution: int
    steps: int
    batch: int
    square: bool = False
    first: int = 0
    start: int = 0

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.first + self.steps


def written(value: Any) -> Any:
    """YAML's list of mappings as the text that the flag takes; anything else as it is. Raises ConfigError."""
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        return value
    if not all(
        _FIELDS <= set(row) <= {*_FIELDS, "square"}
        and row.get("square", True) in (True, False)
        and all(type(row[name]) is int and 0 < row[name] < 10**9 for name in _FIELDS)
        for row in value
    ):
        raise ConfigError("stages", value, _EXPECTED)
    return text_of([Row(**row) for row in value])


def read(text: str) -> list[Row]:
    """The stages of a text. Raises ConfigError."""
    found: list[Row] = []
    for part in text.split(","):
        match = _FORM.fullmatch(part)
        row = Row(int(match[1]), int(match[2]), int(match[3]), bool(match[4])) if match else None
        if row is None or not _is_usable(row):
            raise ConfigError("stages", text, _EXPECTED)
        found.append(row)
    return found


def _is_usable(row: Row) -> bool:
    fits = not row.resolution % 8 and 32 <= row.resolution <= _LARGEST
    return fits and row.steps > 0 and 0 < row.batch <= _MOST_PICTURES


def text_of(rows: Sequence[Row]) -> str:
    """What ``read`` reads."""
    return ", ".join(f"{r.resolution}px x {r.steps}steps x {r.batch}{' square' if r.square else ''}" for r in rows)


def planned(rows: Sequence[Row], per_batch: int) -> list[Stage]:
    """Where each stage begins. per_batch: micro steps · processes, by which a batch becomes an optimizer step's
    pictures."""
    found: list[Stage] = []
    first = start = 0
    for row in rows:
        found.append(Stage(*row, first=first, start=start))
        first += row.steps
        start += row.steps * row.batch * per_batch
    return found
