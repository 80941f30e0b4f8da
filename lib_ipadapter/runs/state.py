"""What a run in a process of its own is doing, for the page and the API."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Ended = Literal["done", "stopped", "failed", "killed"]
Phase = Literal["preparing", "training", "drawing", "measuring", "stopping", Ended]
ENDED: tuple[Ended, ...] = get_args(Ended)


@dataclass(frozen=True)
class State:
    """phase: one of ENDED when its process is over; message: why it ended, or what it does now; seconds_left: where it
    is known; log: its last lines."""

    name: str
    phase: Phase
    seconds_left: float | None = None
    message: str = ""
    log: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.phase not in ENDED

    def as_dict(self) -> dict[str, Any]:
        """As the API answers."""
        return {**asdict(self), "alive": self.alive}
