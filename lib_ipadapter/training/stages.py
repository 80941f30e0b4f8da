"""Stages of a training: steps at one resolution with one batch, one stage after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

_FORM = re.compile(r"\s*(\d{2,4})\s*px\s*[x*]\s*(\d{1,9})\s*steps\s*[x*]\s*(\d{1,5})\s*", re.IGNORECASE)
_EXPECTED = (
    "stages such as 512px x 200000steps x 16, 1024px x 50000steps x 4 (resolution, a multiple of 8; optimizer steps; "
    "batch of one process), or in YAML a list of mappings with resolution, steps and batch"
)
_FIELDS = ("resolution", "steps", "batch")


@dataclass(frozen=True)
class Stage:
    """resolution: pixels; steps: optimizer steps; batch: pictures per process and micro step; first: its first step;
    start: its first position (pictures over all processes before it)."""

    resolution: int
    steps: int
    batch: int
    first: int = 0
    start: int = 0

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.first + self.steps


def written(value: Any) -> Any:
    """YAML's list of mappings as the text that the flag takes; anything else as it is."""
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        return value
    if not all(set(row) == set(_FIELDS) for row in value):
        raise ConfigError("stages", value, _EXPECTED)
    return ", ".join(f"{row['resolution']}px x {row['steps']}steps x {row['batch']}" for row in value)


def read(text: str) -> list[tuple[int, int, int]]:
    """(resolution, steps, batch) of each stage. Raises ConfigError."""
    found: list[tuple[int, int, int]] = []
    for part in text.split(","):
        match = _FORM.fullmatch(part)
        numbers = tuple(int(n) for n in match.groups()) if match else ()
        if len(numbers) != 3 or numbers[0] % 8 or numbers[0] < 32 or not all(numbers):
            raise ConfigError("stages", text, _EXPECTED)
        found.append((numbers[0], numbers[1], numbers[2]))
    return found


def planned(stages: Sequence[tuple[int, int, int]], per_batch: int) -> list[Stage]:
    """Where each stage begins. per_batch: micro steps · processes, by which a batch becomes an optimizer step's
    pictures."""
    found: list[Stage] = []
    first = start = 0
    for resolution, steps, batch in stages:
        found.append(Stage(resolution, steps, batch, first, start))
        first += steps
        start += steps * batch * per_batch
    return found
