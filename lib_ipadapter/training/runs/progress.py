"""How far a training is, from its log.jsonl, of which only what is new is read."""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RECENT = 100  # steps of which the speed and the loss are means
_MOST = 64 * 2**20  # bytes that are read at a time


class Progress:
    """``update`` reads on. steps, losses: of all steps so far; measured: (step, validation loss)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # pages and the API ask at the same time
        self._forget()

    def _forget(self) -> None:
        self._at: tuple[int, int] = (-1, 0)  # the file's own number, and where its next line begins
        self.steps, self.losses, self.times = array("q"), array("d"), array("d")
        self.measured: list[tuple[int, float]] = []
        self.speed: float | None = None  # pictures a second

    def update(self) -> Progress:
        """A file that was written anew, as a training that is gone on with does, is read anew."""
        with self._lock:
            return self._read_on()

    def _read_on(self) -> Progress:
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._at[0] or stat.st_size < self._at[1]:
                    self._forget()
                file.seek(self._at[1])
                data = file.read(_MOST)
        except OSError:
            self._forget()
            return self
        whole = data.rfind(b"\n") + 1  # the last line may be half written
        self._at = stat.st_ino, self._at[1] + whole
        for line in data[:whole].splitlines():
            self._take(line)
        return self

    def _take(self, line: bytes) -> None:
        try:
            row: Any = json.loads(line)
            step, loss, when = int(row["step"]), float(row["loss"]), float(row.get("time", 0))
            validation = row.get("validation")
            measured = None if validation is None else float(validation)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return  # not one of the trainer's lines
        if abs(step) >= 2**63 or not all(map(math.isfinite, (loss, when, measured or 0.0))):
            return
        self.steps.append(step)
        self.losses.append(loss)
        self.times.append(when)
        speed = row.get("pictures_per_second")
        self.speed = float(speed) if isinstance(speed, (int, float)) and math.isfinite(speed) else None
        if measured is not None:
            self.measured.append((step, measured))

    @property
    def step(self) -> int:
        """Steps done."""
        return self.steps[-1] if self.steps else 0

    @property
    def loss(self) -> float | None:
        """Mean of the last steps."""
        recent = self.losses[-_RECENT:]
        return sum(recent) / len(recent) if recent else None

    def since(self, when: float) -> bool:
        """Whether a step was done after ``when``, seconds since the epoch."""
        return bool(self.times) and self.times[-1] >= when

    def seconds_a_step(self, since: float) -> float | None:
        """By the last steps after ``since``; None before there are two."""
        times = [when for when in self.times[-_RECENT:] if when >= since]
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

    def curve(self, most: int) -> list[tuple[int, float]]:
        """(step, loss), at most so many points: each the mean of its steps, at the last of them."""
        with self._lock:
            return thinned(self.steps, self.losses, most)


def thinned(steps: Sequence[int], values: Sequence[float], most: int) -> list[tuple[int, float]]:
    """At most ``most`` points: means over equal runs of neighbours, at the last step of each."""
    count = -(-len(steps) // most) or 1
    starts = range(0, len(steps), count)
    return [
        (steps[min(i + count, len(steps)) - 1], sum(values[i : i + count]) / len(values[i : i + count])) for i in starts
    ]
