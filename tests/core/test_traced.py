"""Rows found by what they hold: a host's own calls, extra ones, permuted rows and windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_ipadapter.attention.rows import EXTRA, Row
from lib_ipadapter.attention.same import distances, same_pass, same_text
from lib_ipadapter.attention.traced import Content, TracedRows, _nearest
from lib_ipadapter.errors import RowsError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Step:
    """A step of a batch: latents of each picture, and a text for each cond and each uncond row."""

    def __init__(self, batch: int = 2, same_prompts: bool = False, same_sides: bool = False) -> None:
        self.batch = batch
        self.pictures = noise(batch, 4, 8, 8)
        self.cond = noise(1 if same_prompts else batch, 5, 6, seed=1).expand(batch, -1, -1).clone()
        self.uncond = self.cond.clone() if same_sides else noise(1, 5, 6, seed=2).repeat(batch, 1, 1)
        self.x = torch.cat([self.pictures, self.pictures])
        self.rows = TracedRows()
        sets = [2 * k for k in range(batch)] + [2 * k + 1 for k in range(batch)]
        self.rows.begin([Row(i, tokens) for i, tokens in enumerate(sets)])
        self.rows.trace(lambda: Content.of(self.x, self.cond, self.uncond), True)

    def chunk(self, x: Tensor, *texts: Tensor) -> None:
        self.rows.chunk(Content.of(x, torch.cat(texts)))

    def call(self, x: Tensor, *texts: Tensor) -> list[int]:
        """The token sets of a UNet call, whose latents the sampler has scaled."""
        found = self.rows.call(x * 0.3, {"context": torch.cat(texts)} if texts else {})
        assert found is not None
        return [row.tokens for row in found]

    def run(self, x: Tensor, *texts: Tensor) -> list[int]:
        """An inner model's call that calls the UNet once."""
        self.chunk(x, *texts)
        found = self.call(x, *texts)
        self.rows.unchunk()
        return found


@pytest.mark.parametrize("same", [False, True])
def test_the_hosts_own_calls_follow_the_cursor(same):
    step = Step(same_prompts=same, same_sides=same)
    assert step.run(step.x, step.cond, step.uncond) == [0, 2, 1, 3]
    split = Step(same_prompts=same, same_sides=same)
    assert split.run(split.pictures, split.cond) == [0, 2]
    assert split.run(split.pictures, split.uncond) == [1, 3]


def test_padded_cut_and_unknown_text_is_followed_in_order():
    step = Step()
    padded = torch.cat([step.uncond, noise(2, 5, 6, seed=9)], dim=1)
    assert step.run(step.pictures, step.cond) == [0, 2]
    assert step.run(step.pictures, padded) == [1, 3]
    step = Step()
    step.chunk(step.x, step.cond[:, :3], step.uncond[:, :3])
    assert step.call(step.x) == [0, 2, 1, 3]
    step = Step()
    assert step.run(step.x, noise(4, 5, 6, seed=5)) == [0, 2, 1, 3]


def test_tiles_repeat_the_chunk():
    step = Step()
    step.chunk(step.x, step.cond, step.uncond)
    assert step.call(noise(12, 4, 4, 4)) == [0, 2, 1, 3] * 3


@pytest.mark.parametrize("ended", [False, True])
def test_a_guidance_call_with_cond_text_everywhere_takes_cond_tokens(ended):
    """PAG, in on_cfg_denoised: all rows of the step, the text of the cond rows twice."""
    step = Step()
    step.run(step.x, step.cond, step.uncond)
    if ended:
        step.rows.begin(())
    assert step.run(step.x, step.cond, step.cond) == [0, 2, 0, 2]
    step.chunk(step.x, step.cond, step.cond)
    found = step.rows.call(step.x, {})
    assert found is not None
    assert {row.place for row in found} == {EXTRA}  # so that maps leave them out


def test_a_guidance_call_before_the_hosts_own():
    step = Step()
    assert step.run(step.pictures, step.uncond) == [1, 3]
    assert step.run(step.x, step.cond, step.uncond) == [0, 2, 1, 3]


def test_a_guidance_call_with_other_latents_takes_the_pictures_in_order():
    """SAG: the uncond text, latents that were blurred."""
    step = Step(same_prompts=True)
    step.run(step.x, step.cond, step.uncond)
    step.rows.begin(())
    assert step.run(noise(2, 4, 8, 8, seed=7), step.uncond) == [1, 3]
    blurred = step.pictures.flip(0) + 0.3 * noise(2, 4, 8, 8, seed=7)
    assert step.run(blurred, step.uncond) == [3, 1]  # near enough to one picture


def test_a_call_of_the_unet_alone_is_followed_too():
    step = Step()
    step.run(step.x, step.cond, step.uncond)
    step.rows.begin(())
    assert step.call(step.pictures[1:], step.uncond[1:]) == [3]


def test_foreign_text_is_refused():
    step = Step()
    step.run(step.x, step.cond, step.uncond)
    step.rows.begin(())
    with pytest.raises(RowsError, match="2 rows, expected rows of the 4 of this step"):
        step.run(step.pictures, noise(2, 5, 6, seed=5))


def test_cond_and_uncond_of_the_same_text():
    step = Step(same_sides=True)
    step.run(step.x, step.cond, step.uncond)
    step.rows.begin(())
    assert step.run(step.x, step.cond, step.cond) == [0, 2, 1, 3]  # the order of the step
    with pytest.raises(RowsError, match="by their text and latents"):
        step.run(step.pictures, step.cond)  # either side


@pytest.mark.parametrize("same", [False, True])
def test_rows_that_are_permuted_behind_us_are_told_by_their_latents(same):
    """Regional Prompter's latent mode: image-major to area-major, in place, here two areas of two pictures."""
    step = Step(same_prompts=same)
    step.x = torch.cat([step.pictures.repeat_interleave(2, 0), step.pictures])
    step.cond = noise(4, 5, 6, seed=1)
    step.rows.begin([Row(i, tokens) for i, tokens in enumerate([0, 0, 2, 2, 1, 3])])
    step.rows.trace(lambda: Content.of(step.x, step.cond, step.uncond), True)
    order = [0, 2, 1, 3]
    step.x[:4], step.cond = step.x[order], step.cond[order]
    assert step.run(step.x[:2], step.cond[:2]) == [0, 2]
    assert step.run(step.x[2:4], step.cond[2:]) == [0, 2]
    assert step.run(step.x[4:], step.uncond) == [1, 3]


def test_permuted_rows_do_not_matter_without_turns():
    step = Step()
    step.rows.begin([Row(i, tokens) for i, tokens in enumerate([0, 0, 1, 1])])
    step.rows.trace(lambda: Content.of(step.x, step.cond, step.uncond), False)
    step.x = step.x[[1, 0, 3, 2]] + 1
    assert step.run(step.x, step.cond, step.uncond) == [0, 0, 1, 1]


def test_latents_of_no_picture_are_an_error():
    step = Step()
    step.x = noise(4, 4, 8, 8, seed=8)
    with pytest.raises(RowsError):
        step.run(step.x, step.cond, step.uncond)


@pytest.mark.parametrize("same", [False, True])
def test_windows_of_a_long_batch(same):
    """AnimateDiff: the UNet sees part of the frames, of both sides."""
    step = Step(batch=6, same_prompts=True, same_sides=same)
    step.chunk(step.x, step.cond, step.uncond)
    for window in ([0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 0, 1]):
        rows = [*window, *(6 + i for i in window)]
        texts = torch.cat([step.cond, step.uncond])[rows]
        wanted = [2 * i for i in window] + [2 * i + 1 for i in window]
        assert step.call(step.x[rows], texts) == wanted
        half = step.rows.call((step.x[rows] * 0.3).half(), {"context": texts.half()})
        assert [row.tokens for row in half or ()] == wanted


def test_between_generations_calls_are_left_alone():
    step = Step()
    step.rows.forget()
    step.rows.chunk(Content(step.x))
    assert step.rows.call(step.x, {}) is None


def test_without_traces_the_cursor_counts():
    rows = TracedRows()
    rows.begin([Row(i, i % 2) for i in range(4)])
    x = noise(4, 4, 8, 8)
    rows.chunk(Content(x[:2]))
    assert [row.place for row in rows.call(x[:2], {}) or ()] == [0, 1]
    rows.unchunk()
    assert [row.place for row in rows.call(x[2:], {}) or ()] == [2, 3]
    with pytest.raises(RowsError, match="at most 0 more"):
        rows.call(x[:1], {})


def test_without_text_latents_and_order_remain():
    """Models that take no text where we look for it."""
    for known in (True, False):
        step = Step()
        if not known:
            step.rows.trace(lambda step=step: Content(step.x), True)
        x = step.pictures
        texts = () if known else (step.cond,)
        step.rows.chunk(Content.of(x, *texts))
        assert step.call(x, *texts) == [0, 2]
        step.rows.unchunk()
        step.rows.begin(())
        step.rows.chunk(Content.of(step.x.flip(0), *texts))
        assert step.call(step.x.flip(0), *texts) == [2, 0, 3, 1]


def test_latents_between_two_pictures_are_neither():
    step = Step(batch=3, same_prompts=True)
    step.run(step.x, step.cond, step.uncond)
    step.rows.begin(())
    a, b, c = step.pictures / step.pictures.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    mixed = torch.stack([1.9 * b + a, 1.9 * c + a, 1.9 * a + b])
    assert step.run(mixed, step.uncond) == [1, 3, 5]  # in order
    near = torch.stack([2.5 * b + a, 2.5 * c + a, 2.5 * a + b])
    assert step.run(near, step.uncond) == [3, 5, 1]


def test_same_text_goes_as_far_as_both_do():
    text = noise(5, 6)
    assert same_text(text, torch.cat([text, text]))
    assert same_text(text.half(), text)
    assert same_text(text, text.bfloat16())
    assert not same_text(text, text.flip(0))
    assert not same_text(text, noise(5, 7))


def test_distances_do_not_count_a_factor():
    a = noise(3, 4, 8, 8)
    apart = distances(a * 7, a)
    assert (apart.diagonal() < 1e-6).all()
    assert apart[0, 1] > 0.9
    assert distances(-a, a).diagonal().tolist() == [1, 1, 1]
    assert (distances(torch.cat([a, noise(3, 5, 8, 8, seed=3)], 1), a).diagonal() < 1e-6).all()  # an inpainting model
    assert distances(a, noise(3, 4, 9, 8)).min() == 1


def test_passes_of_one_unet_call():
    latents, text = noise(2, 4, 8, 8), noise(2, 6, 6, seed=1)
    marked = torch.cat([torch.zeros(2, 1, 6), text], 1)
    assert same_pass(latents, text, latents, text)
    assert same_pass(latents, marked, noise(2, 4, 8, 8, seed=3), marked[:, 1:])  # ControlNet's reference-only
    assert same_pass(latents, text, latents.half(), text.half())
    assert same_pass(latents, None, latents, text)
    assert not same_pass(latents, text, latents[:1], text[:1])
    assert not same_pass(latents, text, noise(2, 4, 8, 8, seed=3), noise(2, 6, 6, seed=4))
    assert not same_pass(latents, text, noise(2, 4, 8, 8, seed=3), text.clone())  # FABRIC, the empty prompt


@pytest.mark.parametrize(("apart", "found"), [
    ([0.2, 0.2, 0.9], (0, 1)),  # no other has their text
    ([0.2, 0.2, 0.1], (0, 1)),
    ([0.7, 0.7, 0.1], ()),  # far from all that are known
    ([0.2, 0.3, 0.1], ()),  # near two, and not much nearer to one
    ([0.2, 0.5, 0.1], (0,)),
])  # fmt: skip
def test_the_nearest_of_one_text_is_taken_where_it_is_clear(apart: list[float], found: tuple[int, ...]):
    assert _nearest([], (0, 1), apart, strict=True) == found
    assert _nearest([], (0, 1), apart, strict=False) == (found or (0, 1))
