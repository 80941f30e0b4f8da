"""What an evaluation is doing."""

from __future__ import annotations

from dataclasses import dataclass

from ...runs.state import State


@dataclass(frozen=True)
class EvaluationState(State):
    """phase: preparing, drawing, measuring or stopping while its process runs. done: pictures that are drawn, or
    measured, of ``total``; seconds_left: of the phase."""

    done: int = 0
    total: int = 0
