"""Intervals: their coverage by simulation, known values, and differences that are paired."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.evaluation import Item, Options, difference, estimate, evaluate
from lib_ipadapter.evaluation.scores import PREFIX, References, Scores
from lib_ipadapter.evaluation.stats import Estimate, Values, t_quantile
from tests.by_colour import THREE, ByColour, Mixer, plain, run

NAN = float("nan")


def covers(found: Estimate | None, truth: float) -> bool:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_interval_of_a_mean_covers_what_it_says(n: int) -> None:
    """A bootstrap of percentiles covers 85 %, 88 % and 92 % here."""
    samples = np.random.default_rng(n).normal(0.7, 0.1, (4000, n))
    assert 0.93 < np.mean([covers(estimate(sample), 0.7) for sample in samples]) < 0.97


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_the_interval_of_a_hit_rate_covers_what_it_says(n: int, p: float) -> None:
    """By the binomial distribution, in which only few rates are possible: the mean over rates near p."""
    coverage = []
    for rate in np.linspace(p - 0.05, p + 0.05, 21):
        chance = [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
        hits = [covers(estimate([1.0] * k + [0.0] * (n - k), rate=True), rate) for k in range(n + 1)]
        coverage.append(sum(c for c, hit in zip(chance, hits, strict=True) if hit))
    assert 0.92 < np.mean(coverage) < 0.98


@pytest.mark.parametrize("n", [10, 20, 50])
def test_the_interval_of_a_difference_of_rates_covers_what_it_says(n: int) -> None:
    """Of methods that hit the same references often: 0.8 against 0.6, of which 0.55 together."""
    draws = np.random.default_rng(n).choice(4, (4000, n), p=[0.55, 0.25, 0.05, 0.15])
    ours, theirs = np.isin(draws, (0, 1)).astype(float), np.isin(draws, (0, 2)).astype(float)
    found = [covers(difference(a, b, rate=True), 0.2) for a, b in zip(ours, theirs, strict=True)]
    assert 0.92 < np.mean(found) < 0.985


def test_known_values() -> None:
    assert [round(t_quantile(n), 4) for n in (1, 2, 4, 9, 30)] == [12.7062, 4.3027, 2.7764, 2.2622, 2.0423]
    assert t_quantile(1001) == pytest.approx(t_quantile(1000), abs=1e-4)
    found = estimate([1.0] * 5, rate=True)
    assert found is not None
    assert (found.mean, round(found.low or 0, 4), found.high, found.n) == (1.0, 0.5655, 1.0, 5)
    found = estimate([1.0, 2.0, 3.0])  # t(2) * 1 / sqrt(3)
    assert found is not None
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert estimate([0.7]) == Estimate(0.7, None, None, 1)
    assert str(estimate([0.7])) == "0.700 [–]"
    assert estimate([NAN]) is None
    assert difference([1.0, NAN], [NAN, 1.0]) is None
    found = estimate([0.0, 1.0, NAN])
    assert found is not None
    assert (found.mean, found.n) == (0.5, 2)


def test_differences_are_paired() -> None:
    """References differ by far more than methods do: the means' intervals overlap, the difference is clear."""
    rng = np.random.default_rng(0)
    references = rng.normal(0.6, 0.2, 12)
    better, worse = references + 0.02, references + rng.normal(0, 0.004, 12)
    one, other, both = estimate(better), estimate(worse), difference(better, worse)
    assert one is not None
    assert other is not None
    assert both is not None
    assert one.low is not None
    assert other.high is not None
    assert one.low < other.high
    assert both.low is not None
    assert 0 < both.low < 0.02 < (both.high or 0)
    gone = difference([0.5, NAN, 0.7], [0.4, 0.1, 0.6])
    assert gone is not None
    assert (round(gone.mean, 6), gone.n) == (0.1, 2)


def test_differences_stand_in_table_and_json(tmp_path: Path) -> None:
    base = Mixer("base-model", only=(0.0,))
    results, _ = run(
        tmp_path,
        [Mixer("one", base), Mixer("two", base, only=(0.0, 1.0)), Mixer("free")],
        weights=(0.0, 0.5, 1.0),
    )
    pairs = {(d.row.method, d.row.weight, d.minus.method, d.minus.weight) for d in results.differences()}
    assert ("two", 1.0, "one", 1.0) in pairs
    assert ("one", 0.5, "base-model", 0.0) in pairs
    assert ("two", 1.0, "one", 0.5) not in pairs
    written = json.loads((tmp_path / "results.json").read_text())["differences"]
    assert len(written) == len(pairs)
    (entry,) = [d for d in written if (d["method"], d["weight"], d["minus"]["method"]) == ("one", 1.0, "base-model")]
    ours, theirs = results.row("one", 1.0), results.row("base-model", 0.0)
    expected = ours.measures["clip_i"].mean - theirs.measures["clip_i"].mean
    assert entry["measures"]["clip_i"]["mean"] == pytest.approx(expected, abs=1e-9)
    assert entry["measures"]["clip_i"]["n"] == len(THREE)
    assert "| one | 1 | base-model | 0 |" in (tmp_path / "results.md").read_text()


def test_clipscore_has_the_papers_prefix(tmp_path: Path) -> None:
    class Prefixed(ByColour):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def texts(self, texts: Sequence[str]) -> torch.Tensor:
            self.asked += texts
            return super().texts([text.removeprefix(PREFIX) for text in texts])

    metric = Prefixed()
    evaluate(THREE, [Mixer("free")], metric, tmp_path, Options())
    assert PREFIX == "A photo depicts "
    assert f"{PREFIX}{THREE[0].caption}" in metric.asked
    assert THREE[0].caption in metric.asked


def test_the_interval_of_a_difference_of_rates_by_hand() -> None:
    """d = 1, 1, 0, -1 and one pair more for each side: centre 1/6, variance (5/6 - 1/36) / 6."""
    ours, theirs = Values([1.0, 1.0, 1.0, 0.0], rate=True), Values([0.0, 0.0, 1.0, 1.0], rate=True)
    half = 1.959964 * ((5 / 6 - 1 / 36) / 6) ** 0.5
    found = ours.minus(theirs)
    assert found is not None
    assert found.mean == 0.25
    assert (found.low, found.high) == pytest.approx((1 / 6 - half, 1 / 6 + half), abs=1e-6)
    plain = Values(theirs.each)  # a rate against a mean is a difference of means
    assert ours.minus(plain) == difference(ours.each, theirs.each)
    assert ours.minus(plain) != found


@pytest.mark.parametrize("count", [5, 6, 7])
def test_ranks_by_hand(count: int) -> None:
    """A picture whose own reference is the first, second, fifth or sixth closest. Top-5 of five says nothing."""
    vectors = torch.nn.functional.normalize(torch.eye(8)[:count], dim=-1)
    similar = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])[:count]
    references = References([""] * count, vectors, vectors, vectors, {})
    picture = torch.nn.functional.pad(similar, (0, 8 - count))

    class Fixed(ByColour):
        def images(self, pictures: Sequence[object]) -> torch.Tensor:
            return picture[None]

    items = [Item(f"{i}", "x", None) for i in range(count)]
    for place in range(count):
        scores = Scores(items, references, Fixed(), {})
        scores.add("m", 1.0, [place], [Image.new("RGB", (1, 1))], [0])
        values = scores.values()
        assert values["top_1"].each[place] == float(place == 0)
        assert values["top_1"].rate
        assert ("top_5" in values) == (count > 5)
        if count > 5:
            assert values["top_5"].each[place] == float(place < 5)
        assert math.isnan(values["clip_i"].each[place - 1])
        assert values["clip_i"].each[place] == pytest.approx(similar[place].item())


def test_further_measures_of_the_references_are_values_or_rates():
    items = [Item(colour, colour, plain(colour)) for colour in ("red", "green", "blue")]
    extra = {
        "is_red": lambda picture, item: item.key == "red",
        "red": lambda picture, item: picture.getpixel((0, 0))[0],
    }
    done: list[int] = []

    def bar(count: int, name: str) -> Any:
        return contextlib.nullcontext(SimpleNamespace(update=done.append))

    references = References.look_at(items, ["a red thing"] * 3, ByColour(), extra, bar)
    measured = references.measured
    assert list(measured["is_red"].each) == [1, 0, 0]
    assert list(measured["red"].each) == [plain(c).getpixel((0, 0))[0] for c in ("red", "green", "blue")]
    assert measured["is_red"].rate
    assert not measured["red"].rate
    assert not measured["clip_t"].rate
    assert sum(done) == 3
