"""The mutation tool: what it changes, what it leaves alone, and that a test which checks nothing is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutate

MODULE = b'''"""A docstring: 1 < 2."""

def clipped(x: "int", low=0):
    """Another."""
    if x < low:
        raise ValueError(f"{x} is below 5")
    return min(x, 7)
'''
CHECKS = """
import pytest
from {package}.small import clipped

def test_it():
    assert clipped(9) == 7 and clipped(0) == 0 and clipped(3, 3) == 3
    with pytest.raises(ValueError):
        clipped(-1)
"""
CHECKS_NOTHING = """
from {package}.small import clipped

def test_it():
    assert clipped(3) == 3
"""


def test_each_mutant_changes_one_place_and_none_a_text_for_people():
    changed = {(m.kind, MODULE[m.start : m.end].decode(), m.text) for m in mutate.mutants(MODULE)}
    assert changed == {
        ("constant", "0", "1"), ("constant", "0", "(-1)"), ("constant", "7", "8"), ("constant", "7", "6"),
        ("comparison", "<", "<="), ("negate", "x < low", "(not (x < low))"),
        ("drop raise", 'raise ValueError(f"{x} is below 5")', "pass"),
        ("function", "min", "max"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y = a <= b < c", {"y = a < b < c", "y = a <= b <= c"}),
        ("y = a is not None", {"y = a is None"}),
        ("y = -x.float()", {"y = (x.float())", "y = -(x)"}),
        ("y = (a + b) * (c)", {"y = (a - b) * (c)", "y = (a + b) / (c)"}),
        ("y = f(a, 'b')", {"y = f('b', a)", "y = f(a, 'b?')"}),
        ("y += x", {"y -= x", "pass"}),
        ("y = a and not b", {"y = ((a) or (not b))", "y = a and (b)"}),
    ],
)
def test_the_changes_by_kind(source, expected):
    data = source.encode()
    assert {m.apply(data).decode() for m in mutate.mutants(data)} == expected


def test_a_sample_is_the_same_for_a_seed_and_in_the_order_of_the_file():
    found = mutate.mutants(MODULE)
    first = mutate.sample(found, 4, "seed")
    assert first == mutate.sample(found, 4, "seed") == sorted(first, key=found.index)
    assert len({tuple(mutate.sample(found, 4, str(seed))) for seed in range(9)}) > 1
    assert mutate.sample(found, 99, "seed") == found


@pytest.mark.parametrize(("checks", "survivors"), [(CHECKS, set()), (CHECKS_NOTHING, {"drop raise"})])
def test_mutants_are_killed_by_checks_and_survive_without(tmp_path: Path, checks: str, survivors):
    package = tmp_path / mutate.PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "test_small.py").write_text(checks.format(package=mutate.PACKAGE))
    survived = set()
    kinds = ("drop raise", "function")
    for mutant in [None, *(m for m in mutate.mutants(MODULE) if m.kind in kinds)]:
        (package / "small.py").write_bytes(mutant.apply(MODULE) if mutant else MODULE)
        outcome = mutate.run_tests(tmp_path, ["test_small.py"], 60)
        assert mutant or outcome == "passed"
        survived |= {mutant.kind} if mutant and outcome == "passed" else set()
    assert survived == survivors


def test_a_mutant_that_never_ends_is_stopped(tmp_path: Path):
    (tmp_path / "test_small.py").write_text("def test_it():\n    while True: pass\n")
    assert mutate.run_tests(tmp_path, ["test_small.py"], 2) == "timeout"


def test_every_target_and_its_tests_exist():
    assert [name for name in mutate.TARGETS if not (mutate.ROOT / mutate.PACKAGE / f"{name}.py").is_file()] == []
    assert [name for name, patterns in mutate.TARGETS.items() if not mutate.tests_of(patterns)] == []
