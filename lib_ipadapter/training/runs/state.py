"""What a training is doing."""

from __future__ import annotations

from dataclasses import dataclass

from ...runs.state import State


@dataclass(frozen=True)
class RunState(State):
    """phase: preparing, training or stopping while its process runs. step: done, of ``steps``; loss: mean of the last
    100 steps; validation: the last one measured; speed: pictures a second; seconds_left: to the last step; samples:
    names of the grids, the newest last; adapter: its name in the list of models, "" before it is there."""

    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation: float | None = None
    speed: float | None = None
    samples: tuple[str, ...] = ()
    adapter: str = ""
