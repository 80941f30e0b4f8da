"""What a run is doing, for the page and the API."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["preparing", "training", "stopping", "done", "stopped", "failed", "killed"]
ALIVE = ("preparing", "training", "stopping")


@dataclass(frozen=True)
class RunState:
    """phase: of ALIVE while its process runs. step: done, of ``steps``; loss: mean of the last 100 steps; validation:
    the last one measured; speed: pictures a second; seconds_left: to the last step, where it is known; message: why it
    ended, or what it does now; samples: names of the grids, the newest last; adapter: its name in the list of models,
    "" before it is there; log: its last lines."""

    name: str
    phase: Phase
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation: float | None = None
    speed: float | None = None
    seconds_left: float | None = None
    message: str = ""
    samples: tuple[str, ...] = ()
    adapter: str = ""
    log: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.phase in ALIVE

    def as_dict(self) -> dict[str, Any]:
        """As the API answers."""
        return {**asdict(self), "alive": self.alive}
