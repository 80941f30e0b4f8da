"""An evaluation as HTML: table with intervals, curves over the weight, grid of pictures. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ...evaluation.pictures import weight_text
from ...evaluation.runs.report import Report
from ...evaluation.runs.state import EvaluationState
from ...evaluation.stats import Estimate
from ...evaluation.table import JSON_ONLY, TITLES, Difference, Row, measure_names
from . import texts
from .curves import curve, legend, points
from .markup import duration, facts, figure, head, log, message

_SIDE = 2400  # pixels of the grid, at most
_NO_CURVE = ("top_1", "top_5", "face_found", *JSON_ONLY)


def evaluation_html(state: EvaluationState, report: Report | None, grid: Path) -> str:
    """What it does, and once it is done what it found."""
    ended = state.phase == "done"
    parts = [
        head(state.name, state.phase, state.done, state.total),
        facts([
            (texts.PICTURES, f"{state.done} / {state.total}" if state.total and not ended else ""),
            (texts.LEFT, "" if state.seconds_left is None else duration(state.seconds_left)),
        ]),
        message(state.phase, state.message),
        "" if report is None else report_html(report, grid),
        log(state.log),
    ]  # fmt: skip
    return f'<div class="ipadapter-train" data-alive="{int(state.alive)}">{"".join(parts)}</div>'


def report_html(report: Report, grid: Path) -> str:
    """Table, curves, grid, differences."""
    rows = report.results.rows
    names = [name for name in measure_names(rows) if name not in JSON_ONLY]
    lines = report.results.lines()
    curves = "".join(
        curve(TITLES.get(name, name), {method: points(line, name) for method, line in lines.items()})
        for name in names if name not in _NO_CURVE
    )  # fmt: skip
    shown = f"<figure>{curves}{legend(list(lines))}<figcaption>{texts.CURVES}</figcaption></figure>" if curves else ""
    notes = f'<p class="ipadapter-note">{texts.CLIPS}</p>'
    if "top_1" in names:
        notes += f'<p class="ipadapter-note">{texts.TOPS}</p>'
    return (
        f"{_table(rows, names)}{notes}{shown}{figure(grid, texts.GRID, _SIDE)}"
        f"{_differences(report.differences, names)}"
        f'<p class="ipadapter-note"><span>{texts.FILES}</span> <code>{escape(str(grid.parent))}</code></p>'
    )


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    body = [[escape(row.method), _weight(row), *_cells(row.measures, names), str(row.pictures)] for row in rows]
    return _rows([texts.METHOD, texts.WEIGHT, *_titles(names), texts.PICTURES], body)


def _differences(found: Sequence[Difference], names: Sequence[str]) -> str:
    if not found:
        return ""
    body = [
        [escape(d.row.method), _weight(d.row), f"{escape(d.minus.method)} {_weight(d.minus)}",
         *_cells(d.measures, names)]
        for d in found
    ]  # fmt: skip
    table = _rows([texts.METHOD, texts.WEIGHT, texts.MINUS, *_titles(names)], body)
    return f"<details><summary>{texts.DIFFERENCES}</summary>{table}</details>"


def _rows(top: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{one}</th>' for one in top)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in body)
    return f'<div class="ipadapter-table"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _titles(names: Sequence[str]) -> list[str]:
    return [escape(TITLES.get(name, name)) for name in names]


def _weight(row: Row) -> str:
    return "–" if row.weight is None else weight_text(row.weight)


def _cells(measures: Mapping[str, Estimate], names: Sequence[str]) -> list[str]:
    return [_cell(measures[name]) if name in measures else "–" for name in names]


def _cell(one: Estimate) -> str:
    mean, _, interval = str(one).partition(" ")
    return f"{mean} <small>{interval}</small>"
