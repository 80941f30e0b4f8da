"""The results: rows of measures, as JSON and as a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from ..atomic import replacing
from . import published
from .pictures import weight_text
from .stats import INTERVALS, LEVEL, Estimate, Values

TITLES = {
    "clip_i": "CLIP-I", "clip_t": "CLIP-T", "top_1": "top-1", "top_5": "top-5", "identity": "identity",
    "face_found": "faces found", "identity_top_1": "identity top-1", "identity_rank": "identity rank",
    "dino": "DINO", "dinov2": "DINOv2", "csd": "CSD",
}  # fmt: skip
JSON_ONLY = ("clipscore",)
REFERENCE = "reference"  # the row of the references themselves
MEANINGS = {
    "clip_i": "cosine of the CLIP image embeddings of picture and reference",
    "clip_t": "cosine of the CLIP embeddings of picture and text (`text` in the settings says which text)",
    "clipscore": "2.5 * max(cosine, 0) of picture and 'A photo depicts ' + text (arXiv 2104.08718)",
    "top_1": "fraction of the pictures that are closer to their own reference than to any other of them",
    "top_5": "fraction of the pictures whose own reference is among the five closest",
    "identity": "cosine of the ArcFace embeddings of the largest faces of picture and reference, where both have one",
    "face_found": "fraction of the pictures in which a face is found",
    "identity_top_1": "fraction of the pictures whose face is closer to their own person than to any other; without a "
    "face: missed",
    "identity_rank": "place of a picture's own person among all, by closeness; 1 is the closest, without a face there "
    "is none",
    "dino": "cosine of the DINO embeddings (class token, arXiv 2104.14294) of picture and reference",
    "dinov2": "cosine of the DINOv2 embeddings (class token, arXiv 2304.07193) of picture and reference",
    "csd": "cosine of the style embeddings (CSD, arXiv 2404.01292) of picture and reference",
}


@dataclass(frozen=True)
class Row:
    """A method at one weight (None: it has none). pictures: how many were measured; values: the measures per
    reference, of which ``measures`` are the means."""

    method: str
    weight: float | None
    measures: Mapping[str, Estimate]
    pictures: int
    values: Mapping[str, Values] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, method: str, weight: float | None, values: Mapping[str, Values], pictures: int) -> Row:
        """With the means of ``values``."""
        means = {name: found for name, each in values.items() if (found := each.estimate()) is not None}
        return cls(method, weight, means, pictures, values)


@dataclass(frozen=True)
class Difference:
    """One row minus another, paired by reference: both have the same references and seeds."""

    row: Row
    minus: Row
    measures: Mapping[str, Estimate]

    @classmethod
    def of(cls, row: Row, minus: Row) -> Difference:
        """Of the measures that both have."""
        pairs = {name: row.values[name].minus(minus.values[name]) for name in row.values if name in minus.values}
        return cls(row, minus, {name: found for name, found in pairs.items() if found is not None})


@dataclass(frozen=True)
class Results:
    """All rows. ``at_zero``: for each method the one whose row of λ = 0 is also its own."""

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    at_zero: Mapping[str, str]
    published: bool = False  # whether values of others are shown

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
            {"method": r.method, "weight": r.weight, "pictures": r.pictures, "measures": _as_json(r.measures)}
            for r in self.rows
        ]
        differences = [
            {"method": d.row.method, "weight": d.row.weight,
            "minus": {"method": d.minus.method, "weight": d.minus.weight},
             "measures": _as_json(d.measures)}
            for d in self.differences()
        ]  # fmt: skip
        return {
            "settings": self.settings, "measures": MEANINGS, "intervals": {"level": LEVEL, **INTERVALS},
            "at_zero": self.at_zero, "rows": rows, "differences": differences,
        }  # fmt: skip

    def differences(self) -> list[Difference]:
        """Of methods at the same weight; one without a weight, and the base model at 0, against all the others."""
        own = [row for row in self.rows if row.method != REFERENCE]
        found = [
            Difference.of(row, minus)
            for minus, row in combinations(own, 2)
            if row.method != minus.method and (row.weight == minus.weight or {None, 0} & {row.weight, minus.weight})
        ]
        return [difference for difference in found if difference.measures]

    def markdown(self) -> str:
        """A table with a line for each row, and below it what the columns are."""
        names = [name for name in measure_names(self.rows) if name not in JSON_ONLY]
        head = ["method", "λ", *(TITLES.get(name, name) for name in names), "references", "pictures"]
        lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
        for row in self.rows:
            count = max((estimate.n for estimate in row.measures.values()), default=0)
            cells = [*_label(row), *_cells(row.measures, names), str(count), str(row.pictures)]
            lines.append(_line(cells))
        legend = [f"- {TITLES[name]}: {MEANINGS[name]}" for name in names if name in MEANINGS]
        intervals = (
            f"Means over references, with {LEVEL:.0%} confidence intervals in brackets: {INTERVALS['means']}; of "
        )
        own = [published.markdown()] if self.published else []
        intervals += f"top-1 and top-5 {INTERVALS['hit rates']}."
        return "\n".join([*lines, "", intervals, "", *legend, "", *self._differences(names), *own])

    def _differences(self, names: list[str]) -> list[str]:
        """The second table: differences between methods."""
        found = self.differences()
        if not found:
            return []
        head = ["method", "λ", "minus", "λ", *(TITLES.get(name, name) for name in names)]
        lines = [_line(head), _line(["---"] * 4 + ["---:"] * len(names))]
        lines += [_line([*_label(d.row), *_label(d.minus), *_cells(d.measures, names)]) for d in found]
        words = f"Differences with {LEVEL:.0%} confidence intervals, {INTERVALS['differences']}:"
        return [words, "", *lines, ""]

    def write(self, out: Path) -> None:
        """results.json and results.md. Raises FileError."""
        for name, text in (
            ("results.json", json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"),
            ("results.md", self.markdown()),
        ):
            with replacing(out / name) as part:
                part.write_text(text, encoding="utf-8")


def measure_names(rows: Sequence[Row]) -> list[str]:
    """The measures of the rows, in the order of the columns."""
    return list(dict.fromkeys(name for row in sorted(rows, key=_own_last) for name in row.measures))


def _as_json(measures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(found) for name, found in measures.items()}


def _label(row: Row) -> list[str]:
    return [row.method, "–" if row.weight is None else weight_text(row.weight)]


def _cells(measures: Mapping[str, Estimate], names: list[str]) -> list[str]:
    return [str(measures[name]) if name in measures else "–" for name in names]


def _own_last(row: Row) -> bool:
    """The references' row has not all columns: the order is another's."""
    return row.method == REFERENCE


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
