"""What changes of a picture from one time that it is seen to the next."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lib_ipadapter.training.augment import Augmentation
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.data import Positions, Preparation, draws
from lib_ipadapter.training.objective import draw
from lib_ipadapter.training.source import Item, item_of
from lib_ipadapter.training.sources import open_source
from tests.training_pictures import PREPARE, SPEC, noise, pictures

PICTURE, OTHER = noise(1, (60, 40)), noise(2, (60, 40))


def equal(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def seen(augmentation: Augmentation, position: int = 0, item: Item | None = None) -> Item:
    item = item or Item("a", PICTURE, PICTURE, "")
    return augmentation.seen(item, augmentation.look(5, position))


def test_nothing_is_changed_by_default():
    found = seen(Augmentation())
    assert found.picture is PICTURE
    assert found.reference is PICTURE


def test_a_target_is_mirrored_and_its_own_reference_with_it():
    one = Augmentation(flip=1.0)
    found = seen(one)
    assert equal(found.picture, ImageOps.mirror(PICTURE))
    assert found.reference is found.picture
    apart = seen(one, item=Item("a", PICTURE, OTHER, ""))
    assert equal(apart.picture, ImageOps.mirror(PICTURE))
    assert apart.reference is OTHER
    half = [equal(seen(Augmentation(flip=0.5), i).picture, PICTURE) for i in range(400)]
    assert 160 < sum(half) < 240


def test_a_reference_changes_alone():
    for own in (Augmentation(crop=0.3), Augmentation(reference_flip=1.0), Augmentation(colour=0.5)):
        found = seen(own)
        assert found.picture is PICTURE
        assert not equal(found.reference, PICTURE)
        assert equal(seen(own).reference, found.reference), "the same position is seen the same"
    assert equal(seen(Augmentation(reference_flip=1.0)).reference, ImageOps.mirror(PICTURE))


def test_what_is_cut_out_is_seen_on_colours():
    """The target keeps its white; what is opaque stays as it is, mirrored where the target is."""
    whole = PICTURE.convert("RGBA")
    whole.putalpha(Image.linear_gradient("L").resize(PICTURE.size).point(lambda a: 255 if a > 127 else 0))
    file = io.BytesIO()
    whole.save(file, "PNG")
    item = item_of("a", file.getvalue(), None)
    assert item.reference is item.picture
    top, bottom = (slice(0, 19), slice(21, 40))
    assert np.asarray(item.picture)[top].min() == 255
    colours = set()
    for position in range(20):
        found = seen(Augmentation(background=1.0), position, item)
        assert equal(found.picture, item.picture)
        drawn = np.asarray(found.reference)
        assert np.array_equal(drawn[bottom], np.asarray(PICTURE)[bottom])
        assert (drawn[top] == drawn[0, 0]).all()
        colours.add(tuple(drawn[0, 0]))
    assert len(colours) == 20
    both = seen(Augmentation(flip=1.0, background=1.0), 0, item)
    assert np.array_equal(np.asarray(both.reference)[bottom], np.asarray(ImageOps.mirror(PICTURE))[bottom])
    half = [equal(seen(Augmentation(background=0.5), i, item).reference, item.picture) for i in range(400)]
    assert 160 < sum(half) < 240
    assert seen(Augmentation(background=1.0)).reference is PICTURE, "without an alpha channel"


def test_a_cut_has_at_least_its_share_and_lies_anywhere():
    """Areas by pixels: 60x40 is 2400; shapes are up to 4:3 of the picture's own."""
    found = [seen(Augmentation(crop=0.25), i).reference for i in range(300)]
    areas = [picture.width * picture.height / 2400 for picture in found]
    ratios = [picture.width / picture.height / 1.5 for picture in found]
    assert 0.22 < min(areas) < 0.35
    assert max(areas) > 0.85
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.42
    whole = np.asarray(PICTURE)
    small = np.asarray(found[int(np.argmin(areas))])
    h, w = small.shape[:2]
    assert any(np.array_equal(whole[y : y + h, x : x + w], small) for y in range(41 - h) for x in range(61 - w)), (
        "a cut is pixels of the picture"
    )


def test_colours_go_no_further_than_asked():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    values = [
        np.asarray(seen(Augmentation(colour=0.2), i, Item("a", grey, grey, "")).reference).mean() for i in range(200)
    ]
    assert 79 <= min(values) < 86
    assert 114 < max(values) <= 121


def test_a_random_crop_lies_anywhere_and_is_told():
    prepare = Preparation(24, SPEC, augmentation=Augmentation(random_crop=True))
    lefts = []
    for position in range(100):
        look = prepare.augmentation.look(0, position)
        tensors = prepare.seen(Item("a", PICTURE, PICTURE, ""), look)
        left = int(tensors["sizes"][3])
        whole = PICTURE.resize((36, 24), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(whole.crop((left, 0, left + 24, 24)), dtype=np.float32) / 127.5 - 1)
        assert torch.equal(tensors["pixels"], pixels.permute(2, 0, 1))
        lefts.append(left)
    assert min(lefts) <= 1
    assert max(lefts) >= 10
    assert Preparation(24, SPEC)(Item("a", PICTURE, PICTURE, ""))["sizes"][3] == 6


def test_looks_belong_to_positions_and_survive_workers(tmp_path: Path):
    source = open_source(pictures(tmp_path, 4))
    prepare = Preparation(24, SPEC, augmentation=Augmentation(0.5, True, 0.3, 0.5, 0.3))
    own, plain = Positions(source, prepare, 3), Positions(source, PREPARE, 3)
    again = pickle.loads(pickle.dumps(own))
    for position in (0, 7, 3):
        a, b, c = own[position], again[position], plain[position]
        assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        assert (a.key, a.caption) == (c.key, c.caption)
        assert not torch.equal(a.tensors["reference"], c.tensors["reference"])
    first, later = (own[p].tensors["reference"] for p in (0, next(p for p in range(4, 8) if own[p].key == own[0].key)))
    assert not torch.equal(first, later), "another epoch sees it otherwise"


def config(**fields: Any) -> TrainConfig:
    return TrainConfig.parse({"base": "b", "data": "d", "encoder": "e", "out": "o", **fields})


def test_the_noise_offset_is_of_a_channel_and_changes_no_other_draw():
    shape = (4, 32, 32)
    plain = draw([draws(0, i) for i in range(3)], shape, 10, config())
    own = draw([draws(0, i) for i in range(3)], shape, 10, config(noise_offset=0.5))
    assert torch.equal(plain.times, own.times)
    assert torch.equal(plain.spread, own.spread)
    offset = own.noise - plain.noise
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset))
    many = draw([draws(0, i) for i in range(2000)], (4, 1, 1), 10, config(noise_offset=0.5))
    none = draw([draws(0, i) for i in range(2000)], (4, 1, 1), 10, config())
    assert (many.noise - none.noise).std().item() == pytest.approx(0.5, abs=0.02)
