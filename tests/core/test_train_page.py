"""What the tab of trainings and evaluations shows: numbers with their words, texts from outside escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

pytest.importorskip("psutil", reason="psutil is not installed")

from lib_ipadapter.evaluation.runs.report import Report
from lib_ipadapter.evaluation.runs.state import EvaluationState
from lib_ipadapter.evaluation.stats import Values
from lib_ipadapter.evaluation.table import Results, Row
from lib_ipadapter.runs.state import Phase
from lib_ipadapter.training.runs.look import Look
from lib_ipadapter.training.runs.state import RunState
from lib_ipadapter.webui.train import texts
from lib_ipadapter.webui.train.curves import curve, points
from lib_ipadapter.webui.train.look import look_html
from lib_ipadapter.webui.train.markup import duration
from lib_ipadapter.webui.train.measured import evaluation_html
from lib_ipadapter.webui.train.show import state_html

BAD = '<img src=x onerror="alert(1)">'


class Texts(HTMLParser):
    """The texts of a page, each as the WebUI looks it up for a translation."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append(data.strip())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def words_in(html: str) -> set[str]:
    """The texts that are no numbers, sizes or names of these tests."""
    known = {BAD, "log.txt", "CLIP-I", "CLIP-T", "top-1", "reference", "base-model", "mine", "base-model 0", "mine 1"}
    found = set(Texts(html).found) - known
    return {text for text in found if re.search(r"[A-Za-z]{4}", text) and BAD not in text}


def training(**more: object) -> str:
    given = {"name": BAD, "phase": "training", "step": 3, "steps": 10, "loss": 0.5, "validation": 0.25, "speed": 2.0,
             "seconds_left": 70.0, "log": (BAD,), **more}  # fmt: skip
    return state_html(RunState(**given), {"loss": [(1, 1.0), (3, 0.5)], "validation": [(2, 0.25)]}, [])


def test_a_training_says_what_it_does_in_words_that_can_be_translated():
    html = training()
    assert "<img" not in html
    assert Texts(html).found.count(BAD) == 2
    assert words_in(html) - set(texts.WORDS) == set()
    assert {"training", texts.STEP, texts.LOSS, texts.LEFT, texts.LOSSES} <= words_in(html)
    assert "3 / 10" in html
    assert 'data-alive="1"' in html
    ended = training(phase="killed", message=BAD, adapter=BAD)
    assert 'data-alive="0"' in ended
    assert 'class="ipadapter-error"' in ended
    assert "<img" not in ended
    assert words_in(ended) - set(texts.WORDS) == set()
    assert texts.LISTED in words_in(ended)


def test_every_phase_has_a_word():
    assert set(get_args(Phase)) == set(texts.PHASES)


def test_the_first_look_says_what_is_wrong():
    look = Look(5, 5, 4, 2, 1, 1, ((BAD, "why"),), (96, 64), (640, 480), 3, (((64, 64), 4), ((96, 64), 1)))
    html = look_html(look)
    assert "<img" not in html
    assert words_in(html) - set(texts.WORDS) == set()
    assert {texts.UNCAPTIONED, texts.BROKEN, texts.CUT, texts.OPENED, texts.REFERENCES} <= set(Texts(html).found)
    assert Texts(html).tags.count("meter") == 2
    empty = look_html(Look(0, 0, 0, 0, 0, 0, (), None, None, 0, ()))
    assert texts.CUT not in empty


def report() -> Report:
    rows = (
        Row.of("reference", None, {"clip_t": Values([0.2, 0.3])}, 2),
        Row.of("base-model", 0.0, {"clip_i": Values([0.4, 0.5]), "top_1": Values([0, 1], True)}, 2),
        Row.of("mine", 1.0, {"clip_i": Values([0.8, 0.9]), "top_1": Values([1, 1], True)}, 2),
        Row.of(BAD, 1.0, {"clip_i": Values([0.7, 0.9]), "top_1": Values([1, 1], True)}, 2),
    )
    results = Results(rows, {}, {"mine": "base-model", BAD: "base-model"})
    return Report(results, tuple(results.differences()), {})


def test_an_evaluation_shows_table_curves_grid_and_differences(tmp_path: Path):
    grid = tmp_path / "grid.png"
    Image.new("RGB", (40, 20)).save(grid)
    html = evaluation_html(EvaluationState(BAD, "done", done=6, total=6, log=(BAD,)), report(), grid)
    assert "<img src=x" not in html
    assert html.count("<img ") == 1
    assert words_in(html) - set(texts.WORDS) <= {str(tmp_path)}
    assert {texts.METHOD, texts.CLIPS, texts.TOPS, texts.DIFFERENCES, texts.GRID} <= set(Texts(html).found)
    assert "[0.215, 1.485]" in html, "Student's t of 0.8 and 0.9"
    assert Texts(html).tags.count("svg") == 1, "of CLIP-I alone: the others have no line"
    running = evaluation_html(EvaluationState("mine", "drawing", 61.0, done=2, total=6), None, grid)
    assert "1 min 1 s" in running
    assert 'data-alive="1"' in running
    assert "<table" not in running


def test_a_line_of_the_curve_goes_through_the_shared_zero():
    lines = report().results.lines()
    assert [weight for weight, _ in points(lines["mine"], "clip_i")] == [0.0, 1.0]
    svg = curve("CLIP-I", {"mine": points(lines["mine"], "clip_i")})
    first, second = re.findall(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', svg)[0][0::2]
    assert (float(first), float(second)) == (0.0, 320.0)
    drawn = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert drawn[0] > drawn[1], "more is above"
    bars = [(float(a), float(b)) for a, b in re.findall(r'y1="([\d.]+)" y2="([\d.]+)"', svg)]
    assert all(low > y > high for (low, high), y in zip(bars, drawn, strict=True))
    assert curve("CLIP-I", {"mine": points(lines["mine"][:1], "clip_i")}) == ""


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3_660, "1 h 1 min"), (48 * 3600, "2 d 0 h"),
])  # fmt: skip
def test_a_duration_has_two_units(seconds: float, said: str):
    assert duration(seconds) == said
