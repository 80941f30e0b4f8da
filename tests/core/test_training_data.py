"""The training's data: positions, broken pictures, preparation."""

from __future__ import annotations

import pickle
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lib_ipadapter.encoders.clip import ImageEncoder
from lib_ipadapter.errors import DataError
from lib_ipadapter.files.captioned import Entry
from lib_ipadapter.pictures import images
from lib_ipadapter.training import data
from lib_ipadapter.training.data import Positions, PositionSampler, Preparation, draws
from lib_ipadapter.training.source import BrokenPicture, FolderSource
from lib_ipadapter.training.sources import open_source
from tests.training_pictures import BLUE, PREPARE, RED, SPEC, encoded, noise, pictures, same, take, write

# positions


def entries(count: int) -> FolderSource:
    return FolderSource(Path(), [Entry(str(i), str(i), "", "") for i in range(count)])


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**63 - 1))
def test_an_order_is_a_permutation_that_seed_and_epoch_decide(count, epoch, seed):
    source = entries(count)
    order = source.order(epoch, seed)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, source.order(epoch, seed))
    if count > 30:
        assert not np.array_equal(order, source.order(epoch + 1, seed))
        assert not np.array_equal(order, source.order(epoch, (seed + 1) % 2**63))


def positions_of(steps: range, world: int, rank: int, batch: int, accumulate: int) -> list[list[int]]:
    """What a rank sees, one list an optimizer step."""
    share = batch * accumulate
    sampler = PositionSampler(steps.start, world, rank, batch, accumulate)
    flat = list(islice(sampler, len(steps) * share))
    return [flat[i : i + share] for i in range(0, len(flat), share)]


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 10**6),
    world=st.integers(1, 5),
    batch=st.integers(1, 5),
    accumulate=st.integers(1, 4),
)
def test_processes_together_see_what_one_with_their_batches_together_sees(start, world, batch, accumulate):
    steps = range(start, start + 3)
    ranks = [positions_of(steps, world, rank, batch, accumulate) for rank in range(world)]
    alone = positions_of(steps, 1, 0, world * batch, accumulate)
    size = world * batch * accumulate
    for at, step in enumerate(steps):
        together = [position for rank in ranks for position in rank[at]]
        assert len(together) == len(set(together))
        assert sorted(together) == alone[at] == list(range(step * size, (step + 1) * size))
    # micro step by micro step as well: gradients are added up in the same order
    for micro in range(accumulate):
        pieces = [rank[0][micro * batch : (micro + 1) * batch] for rank in ranks]
        assert list(chain(*pieces)) == alone[0][micro * world * batch : (micro + 1) * world * batch]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_read_the_pictures_of_one_with_twice_the_batch(tmp_path, accumulate):
    source = open_source(pictures(tmp_path, 7, broken=(2,)))
    alone = take(source, 3, batch=4, accumulate=accumulate)
    ranks = [take(source, 3, world=2, rank=rank, batch=2, accumulate=accumulate) for rank in range(2)]
    assert same([a + b for a, b in zip(*ranks, strict=True)], alone)


def test_every_picture_comes_once_an_epoch(tmp_path):
    source = open_source(pictures(tmp_path, 6))
    epochs = take(source, 4, batch=6)
    assert all({sample.key for sample in epoch} == {f"{i:02}.jpg" for i in range(6)} for epoch in epochs)
    assert len({tuple(sample.key for sample in epoch) for epoch in epochs}) > 1


def test_workers_change_nothing(tmp_path):
    source = open_source(pictures(tmp_path, 7, broken=(3,)))
    state = torch.random.get_rng_state()
    alone = take(source, 6, workers=0)
    assert same(take(source, 6, workers=2), alone)
    assert torch.equal(torch.random.get_rng_state(), state), "the loader drew from the global randomness"


def test_a_start_in_the_middle_of_an_epoch_goes_on_exactly(tmp_path):
    source = open_source(pictures(tmp_path, 7, broken=(3,)))
    whole = take(source, 8, accumulate=2)
    for start in (1, 3, 4):
        assert same(take(source, 8 - start, start=start, accumulate=2), whole[2 * start :])


def test_draws_are_each_positions_own():
    def first(seed: int, position: int) -> int:
        return int(torch.randint(2**62, (1,), generator=draws(seed, position)))

    found = {(s, p): first(s, p) for s in range(20) for p in range(20)}
    assert len(set(found.values())) == 400, "seed and position are added up somewhere"
    assert first(3, 7) == found[3, 7]
    first(2**63 - 1, 10**12)


# broken pictures


def test_a_broken_picture_is_replaced_by_the_next_of_its_epoch(tmp_path):
    source = open_source(pictures(tmp_path, 6, broken=(1, 4)))
    positions = Positions(source, PREPARE, 3)
    for position in range(12):
        epoch, at = divmod(position, 6)
        order = source.order(epoch, 3).tolist()
        following = [order[(at + i) % 6] for i in range(6)]
        good = next(i for i, index in enumerate(following) if index not in (1, 4))
        sample = positions[position]
        assert (sample.position, sample.key) == (position, f"{following[good]:02}.jpg")
        assert sample.caption == f"picture {following[good]}"
        assert [key for key, _ in sample.broken] == [f"{index:02}.jpg" for index in following[:good]]
    reasons = dict(pair for p in range(12) for pair in positions[p].broken)
    assert "cut short" in reasons["01.jpg"]
    assert "no picture that can be read" in reasons["04.jpg"]


def test_a_broken_reference_breaks_its_sample(tmp_path):
    source = open_source(write(tmp_path, {"a.png": encoded(), "a.ref.png": b"text"}))
    with pytest.raises(BrokenPicture, match=r"^a\.png: "):
        source.load(0)


def test_a_broken_picture_keeps_its_name_and_reason_between_processes():
    copy = pickle.loads(pickle.dumps(BrokenPicture("a", "why")))
    assert (copy.key, copy.reason) == ("a", "why")


@pytest.mark.parametrize("workers", [0, 1])
def test_when_no_picture_can_be_read_the_error_says_so_from_a_worker_too(tmp_path, workers):
    source = open_source(pictures(tmp_path, 2, broken=(0, 1)))
    with pytest.raises(DataError, match="not one picture of the data can be read"):
        take(source, 1, workers=workers)


# preparation


def prepared(picture: Image.Image, reference: Image.Image | None = None, side: int = 24) -> dict[str, torch.Tensor]:
    from lib_ipadapter.training.source import Item

    return Preparation(side, SPEC)(Item("key", picture, reference or picture, ""))


@pytest.mark.parametrize("size", [(40, 30), (16, 16), (9, 31), (500, 20)])
def test_the_reference_is_prepared_as_inference_does(size):
    picture = noise(5, size)
    encoder = ImageEncoder(SPEC, nn.Identity(), Path())
    wanted = encoder.pixels(images.fit(picture, SPEC.image_size, "crop"))[0]
    assert torch.equal(prepared(noise(6), picture)["reference"], wanted)


def halves(width: int, height: int) -> Image.Image:
    """Red left (or above), blue right (or below)."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height) if width > height else (0, height // 2, width, height))
    return picture


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((96, 48), [48, 96, 0, 12, 24, 24]),  # landscape: 48x24, cut from left 12
        ((48, 96), [96, 48, 12, 0, 24, 24]),
        ((24, 24), [24, 24, 0, 0, 24, 24]),
        ((24, 40), [40, 24, 8, 0, 24, 24]),  # nothing to resize
        ((12, 18), [18, 12, 6, 0, 24, 24]),  # enlarged
    ],
)
def test_crop_and_size_conditions(size, sizes):
    tensors = prepared(halves(*size))
    assert tensors["sizes"].tolist() == sizes
    pixels = tensors["pixels"]
    assert pixels.shape == (3, 24, 24)
    assert pixels.dtype == torch.float32
    red, blue = (torch.tensor(colour) / 127.5 - 1 for colour in (RED, BLUE))
    assert torch.allclose(pixels[:, 0, 0], red, atol=1e-6)
    assert torch.allclose(pixels[:, -1, -1], blue, atol=1e-6)
    # The border between the halves is in the middle: the cut is the centre
    axis = 2 if size[0] > size[1] else 1
    if size[0] != size[1]:
        lines = pixels.mean(dim=3 - axis)
        assert lines[0, :11].min() > 0 > lines[0, 13:].max()


def test_pixels_are_the_pictures_own_where_nothing_is_resized():
    picture = noise(1, (24, 30))
    wanted = np.array(picture, dtype=np.float32)[3:27] / 127.5 - 1
    assert torch.equal(prepared(picture)["pixels"], torch.from_numpy(wanted).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(50_000, 3), (3, 50_000), (7_777, 11)])
def test_a_strip_is_cut_without_resizing_all_of_it(size, monkeypatch):
    largest = []
    resize = Image.Image.resize

    def watched(self, size, *args, **kwargs):
        largest.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    picture = halves(*size)
    monkeypatch.setattr(Image.Image, "resize", watched)
    square, made = data.covered(picture, (64, 64))
    assert square.size == (64, 64)
    assert max(largest) == 64 * 64
    assert max(made.top, made.left) == (round(max(size) * 64 / min(size)) - 64) // 2
    across = np.asarray(square)[:, :, 0] if size[0] > size[1] else np.asarray(square)[:, :, 0].T
    assert across[:, 0].min() > 150 > 50 > across[:, -1].max()
