"""What an evaluation found, read from its results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runs.folder import read_json
from ..stats import Estimate
from ..table import Difference, Results, Row


@dataclass(frozen=True)
class Report:
    """results: the rows, without the values of each reference; differences: between them, as they were measured;
    content: the file's."""

    results: Results
    differences: tuple[Difference, ...]
    content: Mapping[str, Any]


def read_report(path: Path) -> Report | None:
    """None where there is none that can be read."""
    content = read_json(path)
    try:
        rows = tuple(_row(entry, int(entry["pictures"])) for entry in content["rows"])
        at_zero = {str(method): str(other) for method, other in content["at_zero"].items()}
        differences = tuple(
            Difference(_row(entry), _row({**entry["minus"], "measures": {}}), _measures(entry["measures"]))
            for entry in content["differences"]
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return Report(Results(rows, {}, at_zero), differences, content) if rows else None


def _row(entry: Mapping[str, Any], pictures: int = 0) -> Row:
    weight = entry["weight"]
    return Row(
        str(entry["method"]), None if weight is None else _finite(weight), _measures(entry["measures"]), pictures
    )


def _measures(given: Mapping[str, Any]) -> dict[str, Estimate]:
    return {str(name): _estimate(found) for name, found in given.items()}


def _estimate(found: Mapping[str, Any]) -> Estimate:
    low, high = (None if found[end] is None else _finite(found[end]) for end in ("low", "high"))
    return Estimate(_finite(found["mean"]), low, high, int(found["n"]))


def _finite(value: Any) -> float:
    """Raises ValueError."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
