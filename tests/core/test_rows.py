from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_ipadapter.attention.rows import Rows
from lib_ipadapter.errors import RowsError


def began(*sets: int) -> Rows:
    rows = Rows()
    rows.begin(sets)
    return rows


def test_one_call_holds_the_whole_pattern():
    rows = began(0, 0, 1, 1)
    rows.call(4)
    assert rows.current == (0, 0, 1, 1)


def test_calls_go_on_where_the_last_one_ended():
    rows = began(0, 0, 0, 1)  # AND with three prompts for one picture, one row a call
    seen = []
    for _ in range(4):
        rows.call(1)
        seen += rows.current
    assert seen == [0, 0, 0, 1]


def test_a_chunk_may_mix_cond_and_uncond():
    rows = began(0, 0, 0, 1, 1)
    rows.call(2)
    rows.call(2)
    assert rows.current == (0, 1)


def test_uncond_may_be_left_out_and_the_next_step_begins_anew():
    rows = began(0, 0, 1, 1)
    rows.call(2)
    rows.begin((0, 0, 1, 1))
    rows.call(4)
    assert rows.current == (0, 0, 1, 1)


def test_tiles_repeat_the_chunk_in_several_calls():
    rows = began(0, 1)
    rows.chunk(2)
    rows.call(6)
    assert rows.current == (0, 1, 0, 1, 0, 1)
    rows.call(4)
    assert rows.current == (0, 1, 0, 1)


def test_tiles_of_a_split_step():
    rows = began(0, 1)
    rows.chunk(1)
    rows.call(3)
    assert rows.current == (0, 0, 0)
    rows.chunk(1)
    rows.call(3)
    assert rows.current == (1, 1, 1)


@pytest.mark.parametrize("count", [3, 5, 1])
def test_rows_that_are_no_multiple_of_the_chunk_are_an_error(count):
    rows = began(0, 1)
    rows.chunk(2)
    with pytest.raises(RowsError, match=f"{count} rows"):
        rows.call(count)


def test_more_rows_than_the_step_has_are_an_error():
    rows = began(0, 1)
    rows.call(2)
    with pytest.raises(RowsError, match="expected at most 0 more"):
        rows.call(1)


def test_a_call_outside_a_step_is_an_error():
    with pytest.raises(RowsError):
        Rows().call(1)


@given(st.data())
def test_any_split_reads_the_same_as_one_call(data):
    pattern = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    rows = began(*pattern)
    seen: list[int] = []
    while len(seen) < len(pattern):
        count = data.draw(st.integers(1, len(pattern) - len(seen)))
        rows.call(count)
        seen += rows.current
    assert seen == pattern


def test_halves_of_a_layer_are_told_by_their_place_in_its_storage():
    rows = began(0, 0, 1, 1)
    rows.call(4)
    first, second = torch.randn(4, 9, 8).chunk(2)
    assert rows.of(first) == (0, 0)
    assert rows.of(second) == (1, 1)


def test_rows_that_are_no_slice_are_an_error_and_not_a_guess():
    rows = began(0, 0, 1, 1)
    rows.call(4)
    with pytest.raises(RowsError, match="2 rows"):
        rows.of(torch.randn(2, 9, 8))
    with pytest.raises(RowsError):
        rows.of(torch.randn(5, 9, 8)[:3])


def test_rows_of_tiles():
    rows = began(0, 1)
    rows.chunk(2)
    rows.call(4)
    rows.tile((10, 20), lambda row, tile: row + tile)
    assert rows.current == (10, 11, 20, 21)
    with pytest.raises(RowsError, match="4 rows, expected a multiple of the 3 tiles"):
        rows.tile((1, 2, 3), lambda row, tile: row)
