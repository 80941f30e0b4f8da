"""Settings as config.json has them, where a person, another version or an API client may have written anything: a value
that cannot be used counts as the default, so that no setting keeps the WebUI from starting or a job from running. Pure:
imports no ``modules``."""

from __future__ import annotations

import math
from typing import Any

OFFERS = ("where only this computer reaches the WebUI", "always", "never")


def number(value: Any, default: float, low: float, high: float) -> float:
    """``value`` between ``low`` and ``high``; ``default`` for what is no number."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return default if math.isnan(found) else min(max(found, low), high)


def one_of(value: Any, default: str, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``, else ``default``."""
    return value if isinstance(value, str) and value in choices else default


def listed(value: Any) -> list[str]:
    """The parts of a list, or of a text with one on each line or separated by commas."""
    parts = value if isinstance(value, list) else str(value or "").replace("\n", ",").split(",")
    return [part.strip() for part in parts if isinstance(part, str) and part.strip() and "\0" not in part]


def offered(value: Any, earlier: Any, serves_others: bool) -> bool:
    """Whether a download is offered, by ``value`` of OFFERS. The checkbox of earlier versions, where it was on, makes
    an "always" of the default."""
    chosen = one_of(value, OFFERS[0], OFFERS)
    return chosen == "always" or (chosen == OFFERS[0] and (earlier is True or not serves_others))
