"""The results: rows of measures, as JSON and as a table in Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import replacing
from .pictures import weight_text
from .stats import LEVEL, RESAMPLES, Estimate

TITLES = {"clip_i": "CLIP-I", "clip_t": "CLIP-T", "top_1": "top-1", "top_5": "top-5"}
JSON_ONLY = ("clipscore",)
REFERENCE = "reference"  # the row of the references themselves
MEANINGS = {
    "clip_i": "cosine of the CLIP image embeddings of picture and reference",
    "clip_t": "cosine of the CLIP embeddings of picture and text (`text` in the settings says which text)",
    "clipscore": "2.5 * max(clip_t, 0), per picture (arXiv 2104.08718)",
    "top_1": "share of the pictures that are closer to their own reference than to any other of them",
    "top_5": "share of the pictures whose own reference is among the five closest",
}


@dataclass(frozen=True)
class Row:
    """A method at one λ (None: it has none). ``pictures``: how many were measured."""

    method: str
    weight: float | None
    measures: Mapping[str, Estimate]
    pictures: int


@dataclass(frozen=True)
class Results:
    """All rows. ``at_zero``: for each method the one whose row of λ = 0 is also its own."""

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    at_zero: Mapping[str, str]

    def row(self, method: str, weight: float | None = None) -> Row:
        """The row of a method at a λ. Raises KeyError."""
        owner = self.at_zero.get(method, method) if weight == 0 else method
        for row in self.rows:
            if (row.method, row.weight) == (owner, weight):
                return row
        raise KeyError(f"no row {method} at {weight}; there are {[(r.method, r.weight) for r in self.rows]}")

    def lines(self) -> dict[str, list[Row]]:
        """Of each method with a λ the rows by ascending λ, λ = 0 included."""
        own: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.weight is not None and row.method not in self.at_zero.values():
                own.setdefault(row.method, []).append(row)
        shared = {row.method: row for row in self.rows if row.weight == 0}
        for method, rows in own.items():
            if self.at_zero.get(method) in shared:
                rows.append(shared[self.at_zero[method]])
            rows.sort(key=lambda row: row.weight or 0.0)
        return own

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        rows = [
            {"method": r.method, "weight": r.weight, "pictures": r.pictures,
             "measures": {name: dataclasses.asdict(e) for name, e in r.measures.items()}}
            for r in self.rows
        ]  # fmt: skip
        interval = f"bootstrap over references, {LEVEL:.0%}, percentiles of {RESAMPLES} resamples"
        return {
            "settings": self.settings, "measures": MEANINGS, "interval": interval, "at_zero": self.at_zero, "rows": rows
        }  # fmt: skip

    def markdown(self) -> str:
        """A table with a line for each row, and below it what the columns are."""
        names = [name for name in _names(self.rows) if name not in JSON_ONLY]
        head = ["method", "λ", *(TITLES.get(name, name) for name in names), "references", "pictures"]
        lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
        for row in self.rows:
            cells = [str(row.measures[name]) if name in row.measures else "–" for name in names]
            count = max((estimate.n for estimate in row.measures.values()), default=0)
            weight = "–" if row.weight is None else weight_text(row.weight)
            lines.append(_line([row.method, weight, *cells, str(count), str(row.pictures)]))
        legend = [f"- {TITLES[name]}: {MEANINGS[name]}" for name in names if name in MEANINGS]
        intervals = f"Means over references, with {LEVEL:.0%} bootstrap confidence intervals in brackets."
        return "\n".join([*lines, "", intervals, "", *legend, ""])

    def write(self, out: Path) -> None:
        """results.json and results.md. Raises FileError."""
        for name, text in (
            ("results.json", json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"),
            ("results.md", self.markdown()),
        ):
            with replacing(out / name) as part:
                part.write_text(text, encoding="utf-8")


def _names(rows: tuple[Row, ...]) -> list[str]:
    return list(dict.fromkeys(name for row in sorted(rows, key=_own_last) for name in row.measures))


def _own_last(row: Row) -> bool:
    """The references' row has not all columns: the order is another's."""
    return row.method == REFERENCE


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
