"""Aspect buckets and stages: sizes and cuts by hand, and which picture is at which position."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_ipadapter.errors import ConfigError
from lib_ipadapter.files.captioned import Entry
from lib_ipadapter.pictures import images
from lib_ipadapter.training.buckets import BucketPlan, bucket_sizes, cut, nearest, size_conditions
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.data import Positions, Preparation, covered
from lib_ipadapter.training.source import FolderSource, Item
from lib_ipadapter.training.sources import open_source
from lib_ipadapter.training.stages import Stage, planned, read
from tests.training_pictures import SPEC, encoded, noise, tar, write

SDXL = bucket_sizes(1024, 64)


def test_the_buckets_of_1024_are_of_those_that_sdxl_was_trained_with():
    """arXiv 2307.01952, appendix I: the tall half of its table, of each height the widest."""
    table = [
        (2048, 512), (1984, 512), (1920, 512), (1856, 512), (1792, 576), (1728, 576), (1664, 576), (1600, 640),
        (1536, 640), (1472, 704), (1408, 704), (1344, 704), (1344, 768), (1280, 768), (1216, 832), (1152, 832),
        (1152, 896), (1088, 896), (1088, 960), (1024, 960), (1024, 1024),
    ]  # fmt: skip
    widest = {height: max(w for h, w in table if h == height) for height, _ in table}
    mine = {(width, height) for width, height in SDXL if height >= width}
    assert mine <= {(w, h) for h, w in table}
    assert {(widest[height], height) for height in widest} == mine
    assert {(height, width) for width, height in SDXL} == set(SDXL)


@settings(max_examples=100, deadline=None)
@given(resolution=st.integers(8, 200).map(lambda n: 8 * n), step=st.sampled_from((8, 32, 64)))
def test_no_bucket_is_larger_than_the_square_and_none_longer_than_twice(resolution: int, step: int):
    for width, height in bucket_sizes(resolution, step):
        assert width * height <= resolution**2
        assert max(width, height) <= 2 * resolution
        assert width % step == height % step == 0
    if resolution % step == 0:
        assert (resolution, resolution) in bucket_sizes(resolution, step)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1000, 1000), (1024, 1024)), ((1600, 1200), (1152, 896)), ((1200, 1600), (896, 1152)),
     ((1920, 1080), (1344, 768)),
     ((3000, 100), (2048, 512)), ((832, 1216), (832, 1216))],
)  # fmt: skip
def test_the_nearest_bucket(size: tuple[int, int], bucket: tuple[int, int]):
    """1.333 lies between 1152:896 = 1.286 and 1216:832 = 1.462, 1.778 between 1344:768 = 1.75 and 1344:704."""
    assert nearest(size, SDXL) == bucket


def test_cuts_and_conditions_by_hand():
    # 1600x1200 into 1152x896: the factors are 0.72 and 0.7467; at the larger one 1195x896, of which 43 columns go
    made = cut((1600, 1200), (1152, 896))
    assert (made.resized, made.left, made.top) == ((1195, 896), 21, 0)
    assert size_conditions((1600, 1200), (1152, 896), made) == (1200, 1600, 0, 21, 896, 1152)
    # 500x2000 into 512x2048: scaled by 1.024, nothing is cut
    made = cut((500, 2000), (512, 2048))
    assert (made.resized, made.left, made.top) == ((512, 2048), 0, 0)
    # A square into 704x1472: as high as the bucket, 768 of its columns go
    made = cut((100, 100), (704, 1472), across=1.0)
    assert (made.resized, made.left, made.top) == ((1472, 1472), 768, 0)
    assert size_conditions((100, 100), (704, 1472), made) == (100, 100, 0, 768, 1472, 704)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_no_picture_is_distorted(width: int, height: int):
    """Both sides are scaled alike but for the rounding to whole pixels."""
    bucket = nearest((width, height), SDXL)
    made = cut((width, height), bucket)
    assert made.resized[0] >= bucket[0] and made.resized[1] >= bucket[1]  # noqa: PT018
    assert bucket[0] in made.resized or bucket[1] in made.resized
    scale = max(bucket[0] / width, bucket[1] / height)
    assert abs(made.resized[0] - width * scale) <= 0.5 + 1e-6
    assert abs(made.resized[1] - height * scale) <= 0.5 + 1e-6
    assert 0 <= made.left <= made.resized[0] - bucket[0]
    assert 0 <= made.top <= made.resized[1] - bucket[1]


def test_what_is_prepared_is_the_cut_and_the_encoder_keeps_its_square():
    picture = noise(1, (90, 60))
    buckets = tuple(bucket_sizes(32, 8))
    tensors = Preparation(32, SPEC, buckets)(Item("a", picture, picture, ""))
    assert nearest((90, 60), buckets) == (40, 24)
    assert tensors["pixels"].shape == (3, 24, 40)
    assert tensors["reference"].shape == (3, 16, 16)
    assert tensors["sizes"].tolist() == [60, 90, 1, 0, 24, 40]  # 40x27, of which one row goes above
    middle, _ = covered(picture, (40, 24))
    assert np.array_equal(np.asarray(middle), np.asarray(picture.resize((40, 27), Image.Resampling.LANCZOS))[1:25])


# positions


def source(count: int) -> FolderSource:
    return FolderSource(Path(), [Entry(str(i), str(i), "", "") for i in range(count)])


def plan(sizes: list[Any], group: int, seed: int = 3, start: int = 0) -> BucketPlan:
    return BucketPlan(source(len(sizes)), sizes, SDXL, seed, group, start)


def picks(of: BucketPlan, positions: range) -> list[int]:
    return [next(of.candidates(position)) for position in positions]


WIDE, TALL, SQUARE = (1600, 900), (900, 1600), (700, 700)


def test_every_picture_is_seen_once_an_epoch():
    sizes = [WIDE] * 8 + [TALL] * 4 + [SQUARE] * 12
    own = plan(sizes, 4)
    seen = [picks(own, range(24 * e, 24 * e + 24)) for e in range(5)]
    assert all(sorted(epoch) == list(range(24)) for epoch in seen)
    assert len({tuple(epoch) for epoch in seen}) == 5
    assert picks(plan(sizes, 4, seed=4), range(24)) != seen[0]


@settings(max_examples=60, deadline=None)
@given(wide=st.integers(0, 9), tall=st.integers(0, 9), square=st.integers(1, 9), group=st.integers(1, 5),
       epochs=st.integers(1, 6))  # fmt: skip
def test_what_is_left_of_an_epoch_begins_the_next(wide: int, tall: int, square: int, group: int, epochs: int):
    """After any number of epochs less than a group of a bucket is behind."""
    sizes = [WIDE] * wide + [TALL] * tall + [SQUARE] * square
    own = plan(sizes, group)
    groups = sum(epochs * n // group for n in (wide, tall, square))
    seen = Counter(picks(own, range(groups * group)))
    for count, first in ((wide, 0), (tall, wide), (square, wide + tall)):
        times = [seen[i] for i in range(first, first + count)]
        assert sum(times) == epochs * count // group * group
        # rows are whole orders, one after the other: no picture is two ahead of another
        assert not times or max(times) - min(times) <= 1


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 10**7), first=st.integers(0, 10**6))
def test_a_group_is_of_one_bucket_wherever_it_is_begun(start: int, first: int):
    sizes = [WIDE] * 7 + [TALL] * 3 + [SQUARE] * 5 + [None]
    own = plan(sizes, 4, start=start)
    positions = range(start + 4 * first, start + 4 * first + 4)
    found = picks(own, positions)
    assert len({sizes[i] for i in found}) == 1
    again = pickle.loads(pickle.dumps(plan(sizes, 4, start=start)))
    assert [next(again.candidates(p)) for p in reversed(positions)] == found[::-1]


def test_what_stands_in_for_a_broken_picture_is_of_its_bucket():
    sizes = [WIDE] * 3 + [None] * 2 + [TALL] * 5
    own = plan(sizes, 2)
    for position in range(40):
        found = list(own.candidates(position))
        own_bucket = sum(size == sizes[found[0]] for size in sizes)
        assert len(found) == len(set(found)) == 8, "those of the other bucket come behind"
        assert len({sizes[i] for i in found[:own_bucket]}) == len({sizes[i] for i in found[own_bucket:]}) == 1
    assert not {3, 4} & set(picks(own, range(100)))


# sizes


def test_sizes_are_read_without_decoding_and_stand_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    turned = Image.new("RGB", (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    write(tmp_path, {"plain.png": encoded(size=(30, 20)), "broken.png": b"text"})
    folder = open_source(tmp_path)
    wanted = {"plain.png": (30, 20), "turned.jpg": (30, 40)}
    keys = {folder.key(i): i for i in range(len(folder))}
    for name, size in wanted.items():
        assert images.load(tmp_path / name).size == size
    monkeypatch.setattr(Image.Image, "transpose", None)
    for name, size in wanted.items():
        assert folder.size(keys[name]) == size
    from lib_ipadapter.training.source import BrokenPicture

    with pytest.raises(BrokenPicture, match=r"broken\.png"):
        folder.size(keys["broken.png"])
    shards = open_source(tar(tmp_path / "a.tar", {"1.png": encoded(size=(12, 34))}))
    assert shards.size(0) == (12, 34)


# stages


def test_stages_by_hand():
    rows = read("512px x 100steps x 16, 1024PX*50steps*4 Square")
    assert rows == [(512, 100, 16, False), (1024, 50, 4, True)]
    assert planned(rows, per_batch=6) == [Stage(512, 100, 16), Stage(1024, 50, 4, True, first=100, start=100 * 16 * 6)]
    assert planned(rows, 1)[1].end == 150


LEAST = {"base": "b", "data": "d", "encoder": "e", "out": "o"}


def test_stages_are_text_or_a_list_and_decide_the_steps():
    text = "512px x 100steps x 16, 1024px x 50steps x 4"
    rows = [{"resolution": 512, "steps": 100, "batch": 16}, {"resolution": 1024, "steps": 50, "batch": 4}]
    a, b = (TrainConfig.parse({**LEAST, "stages": value}) for value in (text.upper().replace(" X ", "*"), rows))
    assert a == b
    assert (a.stages, a.steps) == (text, 150)
    assert TrainConfig.parse(a.as_dict()) == a
    longer = TrainConfig.parse({**LEAST, "stages": text.replace("50steps", "90steps")})
    other = TrainConfig.parse({**LEAST, "stages": text.replace("100steps", "90steps")})
    assert a.hash == longer.hash != other.hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"stages": "512"}, "stages: got '512', expected stages such as 512px"),
     ({"stages": "510px x 1steps x 1"}, "multiple of 8"), ({"stages": "512px x 0steps x 1"}, "^stages"),
     ({"stages": [{"resolution": 512}]}, "^stages"),
     ({"stages": "512px x 9steps x 1", "steps": 10}, "steps: got 10, expected nothing, or 9"),
     ({"stages": "512px x 9steps x 1", "resolution": 512}, "resolution: got 512, expected nothing")],
    ids=lambda x: str(x)[:30],
)  # fmt: skip
def test_stages_that_cannot_be_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.parse({**LEAST, **fields})


def test_another_bucket_stands_in_for_one_that_is_broken_altogether(tmp_path):
    """A picture whose head can be read and whose body, or face, cannot, may be the only one of its shape."""
    shapes = {"a.png": (40, 20), **{f"{n}.png": (20, 20) for n in range(5)}, "z.png": (20, 40)}
    files = {name: encoded(size=size) for name, size in shapes.items()}
    files["a.png"] = files["a.png"][:-30]
    source = open_source(write(tmp_path, files))
    sizes = [source.size(index) for index in range(len(source))]
    plan = BucketPlan(source, sizes, [(16, 16), (24, 8), (8, 24)], 0, 2)
    positions = Positions(source, Preparation(16, SPEC, ((16, 16), (24, 8), (8, 24))), 0, plan=plan)
    seen = Counter()
    for group in range(12):
        pair = [positions[2 * group + at] for at in range(2)]
        assert pair[0].tensors["pixels"].shape == pair[1].tensors["pixels"].shape, "a batch is of one bucket"
        seen[bool(pair[0].broken)] += 1
    assert seen[True] > 0 < seen[False]
