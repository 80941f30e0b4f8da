"""What an evaluation is doing, for the page and the API."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["preparing", "drawing", "measuring", "stopping", "done", "stopped", "failed", "killed"]
ALIVE = ("preparing", "drawing", "measuring", "stopping")


@dataclass(frozen=True)
class EvaluationState:
    """phase: of ALIVE while its process runs. done: pictures that are drawn, or measured, of ``total``; seconds_left:
    of the phase, where it is known; message: why it ended, or what it does now; log: its last lines."""

    name: str
    phase: Phase
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    message: str = ""
    log: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.phase in ALIVE

    def as_dict(self) -> dict[str, Any]:
        """As the API answers."""
        return {**asdict(self), "alive": self.alive}
