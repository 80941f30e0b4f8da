"""Settings that a person or an API client has written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lib_ipadapter.webui.stored import OFFERS, listed, number, offered, one_of


@pytest.mark.parametrize("value", [None, "", "many", [], {}, [3], math.nan, "\0"])
def test_what_is_no_number_is_the_default(value: Any) -> None:
    assert number(value, 3, 1, 10) == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 1), (-(10**400), 3), (10**9, 10), (math.inf, 10), ("4", 4), (2.5, 2.5), (True, 1), (10**400, 3)],
)
def test_numbers_stay_between_their_bounds(value: Any, expected: float) -> None:
    assert number(value, 3, 1, 10) == expected


@pytest.mark.parametrize("value", [None, "", 3, [], "other"])
def test_what_is_no_choice_is_the_default(value: Any) -> None:
    assert one_of(value, "crop", ("crop", "pad")) == "crop"
    assert one_of("pad", "crop", ("crop", "pad")) == "pad"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, []), ("", []), ("a, b\nc", ["a", "b", "c"]), (["a,b", 3, ""], ["a,b"]), ("a\0b,c", ["c"]), ({}, [])],
)
def test_folders(value: Any, expected: list[str]) -> None:
    assert listed(value) == expected


def test_a_download_is_offered_to_who_may_start_it():
    alone, always, never = OFFERS
    given = (alone, always, never, None, 3)
    assert [offered(value, False, serves_others=True) for value in given] == [False, True, False, False, False]
    assert [offered(value, False, serves_others=False) for value in given] == [True, True, False, True, True]
    assert offered(alone, True, serves_others=True), "the checkbox of earlier versions"
    assert not offered(never, True, serves_others=False), "it can be switched off"
