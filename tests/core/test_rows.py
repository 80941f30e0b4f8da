from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_ipadapter.attention.rows import (
    COND,
    EXTRA,
    UNCOND,
    CursorRows,
    LabelledRows,
    Row,
    rows_of_view,
    tiled,
)
from lib_ipadapter.errors import RowsError


def pattern(*sets: int) -> tuple[Row, ...]:
    return tuple(Row(i, tokens) for i, tokens in enumerate(sets))


def began(*sets: int) -> CursorRows:
    rows = CursorRows()
    rows.begin(pattern(*sets))
    return rows


def call(rows: CursorRows | LabelledRows, count: int, **kwargs: object) -> tuple[int, ...] | None:
    found = rows.call(torch.zeros(count, 4, 2, 2), kwargs)
    return None if found is None else tuple(row.tokens for row in found)


def test_the_numbers_that_token_sets_and_hosts_count_by():
    assert (COND, UNCOND) == (0, 1)  # 2k + COND, 2k + UNCOND; Forge's labels
    assert EXTRA not in range(1000)


def test_one_call_holds_the_whole_pattern():
    assert call(began(0, 0, 1, 1), 4) == (0, 0, 1, 1)


def test_calls_go_on_where_the_last_one_ended():
    rows = began(0, 0, 0, 1)  # AND with three prompts for one picture, one row a call
    assert [call(rows, 1) for _ in range(4)] == [(0,), (0,), (0,), (1,)]


def test_a_chunk_may_mix_cond_and_uncond():
    rows = began(0, 0, 0, 1, 1)
    call(rows, 2)
    assert call(rows, 2) == (0, 1)


def test_uncond_may_be_left_out_and_the_next_step_begins_anew():
    rows = began(0, 0, 1, 1)
    call(rows, 2)
    rows.begin(pattern(0, 0, 1, 1))
    assert call(rows, 4) == (0, 0, 1, 1)


def test_tiles_repeat_the_chunk_in_several_calls():
    rows = began(0, 1)
    rows.chunk(2)
    assert call(rows, 6) == (0, 1, 0, 1, 0, 1)
    assert call(rows, 4) == (0, 1, 0, 1)


def test_tiles_of_a_split_step():
    rows = began(0, 1)
    rows.chunk(1)
    assert call(rows, 3) == (0, 0, 0)
    rows.chunk(1)
    assert call(rows, 3) == (1, 1, 1)


@pytest.mark.parametrize("count", [3, 5, 1])
def test_rows_that_are_no_multiple_of_the_chunk_are_an_error(count):
    rows = began(0, 1)
    rows.chunk(2)
    with pytest.raises(RowsError, match=f"called with {count} rows, expected a multiple of 2"):
        call(rows, count)


def test_more_rows_than_the_step_has_are_an_error():
    rows = began(0, 1)
    call(rows, 2)
    with pytest.raises(RowsError, match="expected at most 0 more of the 2"):
        call(rows, 1)


def test_a_call_outside_a_step_is_left_alone():
    assert call(CursorRows(), 1) is None
    rows = began(0, 1)
    rows.begin(())
    assert call(rows, 2) is None


@given(st.data())
def test_any_split_reads_the_same_as_one_call(data):
    sets = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    rows = began(*sets)
    seen: list[int] = []
    while len(seen) < len(sets):
        seen += call(rows, data.draw(st.integers(1, len(sets) - len(seen)))) or ()
    assert seen == sets


def test_halves_of_a_layer_are_told_by_their_place_in_its_storage():
    first, second = torch.randn(4, 9, 8).chunk(2)
    rows = pattern(0, 0, 1, 1)
    assert rows_of_view(rows, first) == rows[:2]
    assert rows_of_view(rows, second) == rows[2:]
    assert rows_of_view(rows, torch.randn(4, 9, 8)[2:3]) == rows[2:3]
    assert rows_of_view(rows, torch.randn(4, 9, 2)[:2]) == rows[:2]
    assert rows_of_view(rows, torch.randn(4, 4, 4)[2:]) == rows[2:]


def test_rows_that_are_no_slice_are_an_error_and_not_a_guess():
    rows = pattern(0, 0, 1, 1)
    for hidden in (
        torch.randn(2, 9, 8),  # a tensor of its own
        torch.randn(5, 9, 8)[:3],  # of another whole
        torch.randn(4 * 9 * 8)[8 : 8 + 2 * 72].view(2, 9, 8),  # begins inside a row
        torch.randn(4 * 9 * 8)[3 * 72 :].view(1, 9, 8).expand(3, 9, 8),  # ends behind the last row
    ):
        with pytest.raises(RowsError, match="a slice of them"):
            rows_of_view(rows, hidden)


def test_rows_of_tiles():
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    rows = pattern(0, 1) * 2
    assert [(row.tokens, row.tile) for row in tiled(rows, (left, right))] == [
        (0, left), (1, left), (0, right), (1, right),
    ]  # fmt: skip
    with pytest.raises(RowsError, match="4 rows, expected a multiple of the 3 tiles"):
        tiled(rows, (left, right, left))


# Forge and reForge say what the parts of a call are, uncond first where one call holds both (facts of
# backend/sampling/sampling_function.py).


def labelled(*sets: int) -> LabelledRows:
    rows = LabelledRows()
    rows.begin(pattern(*sets))
    return rows


def options(*labels: int) -> dict[str, object]:
    return {"transformer_options": {"cond_or_uncond": list(labels)}}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((1, 0), (1, 3, 0, 2)),  # both in one call
        ((0, 1), (0, 2, 1, 3)),
        ((1,), (1, 3)),  # little memory: a call each
        ((0,), (0, 2)),  # PAG's pass, cfg 1
        ((1, 0, 0), (1, 3, 0, 2, 0, 2)),  # AND: a part for each sub-prompt
    ],
)
def test_labels_say_which_part_is_which(labels, expected):
    assert call(labelled(0, 2, 1, 3), 2 * len(labels), **options(*labels)) == expected


def test_labelled_tiles_repeat_the_whole_call():
    """MultiDiffusion cuts all rows of a call for one tile after the other (lib_multidiffusion/tiled_diffusion.py)."""
    assert call(labelled(0, 2, 1, 3), 8, **options(1, 0)) == (1, 3, 0, 2, 1, 3, 0, 2)


def places(rows: LabelledRows, *labels: int, latents: torch.Tensor | None = None) -> list[int]:
    count = 2 * len(labels)
    found = rows.call(torch.zeros(count, 4, 2, 2) if latents is None else latents, options(*labels))
    return [row.place for row in found or ()]


def test_with_and_each_part_has_places_of_its_own():
    rows = labelled(0, 2, 0, 2, 1, 3)
    assert places(rows, 1, 0, 0) == [4, 5, 0, 1, 2, 3]
    rows = labelled(0, 2, 0, 2, 1, 3)
    assert [places(rows, 1), places(rows, 0), places(rows, 0)] == [[4, 5], [0, 1], [2, 3]]


def test_a_pass_beside_the_steps_own_has_no_places():
    rows = labelled(0, 2, 1, 3)
    assert places(rows, 1, 0) == [2, 3, 0, 1]
    assert places(rows, 0) == [EXTRA, EXTRA]  # PAG
    rows.begin(pattern(0, 2, 1, 3))
    assert places(rows, 0) == [0, 1]


def test_rows_with_other_latents_have_no_places():
    """reference_only runs the model on its own picture before the step's."""
    torch.manual_seed(0)
    step, other = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    rows = labelled(0, 2, 1, 3)
    rows.show(step)
    assert places(rows, 0, latents=other) == [EXTRA, EXTRA]
    assert places(rows, 1, 0, latents=torch.cat([step, step]) * 0.3) == [2, 3, 0, 1]


@pytest.mark.parametrize("labels", [(1, 0), (0, 1), (0,), (1, 0, 0), (1,)])
@pytest.mark.parametrize("regions", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_with_a_copy_of_the_cond_rows_for_each_region(labels, regions, batch):
    """Forge Couple (lib_couple/attention_couple.py): uncond once, cond repeated, zeros to an even number."""
    torch.manual_seed(0)
    rows = labelled(*[2 * k for k in range(batch)] * labels.count(0), *[2 * k + 1 for k in range(batch)])
    called = rows.call(torch.zeros(batch * len(labels), 4, 2, 2), options(*labels)) or ()
    held, expected = [], []
    for part, label in enumerate(labels):
        chunk = torch.randn(batch, 9, 8)
        times = 1 if label else regions + 1
        held.append(chunk.repeat(times, 1, 1))
        expected += list(called[batch * part : batch * (part + 1)]) * times
    hidden = torch.cat(held)
    if len(hidden) % 2:
        hidden = torch.cat([hidden, torch.zeros(1, 9, 8)])
    found = rows_of_view(called, hidden)
    assert list(found[: len(expected)]) == expected
    assert len(found) == len(hidden)
    if len(hidden) == len(called):  # uncond alone, of an even number
        return
    hidden[-1 if labels == (1,) else batch * labels[0]] += 1  # a row of the first copy, or that of zeros
    with pytest.raises(RowsError, match="or a slice of them"):
        rows_of_view(called, hidden)


@pytest.mark.parametrize(
    ("count", "kwargs"),
    [
        (4, {}),
        (4, {"transformer_options": None}),
        (4, options()),
        (3, options(1, 0)),  # parts of unequal size
        (3, options(0)),  # no multiple of the batch
        (2, options(7)),
    ],
)
def test_what_labels_do_not_explain_is_an_error(count, kwargs):
    with pytest.raises(RowsError, match=f"{count}? rows"):
        call(labelled(0, 2, 1, 3), count, **kwargs)


def test_labelled_calls_outside_a_step_are_left_alone():
    assert call(LabelledRows(), 2, **options(0)) is None
