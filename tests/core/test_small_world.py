"""The small world's pictures, and what reads them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from examples.small_world import data, read

ATTRIBUTES = ("shape", "colour", "texture", "size", "place")


def drawings(count: int) -> list[data.Sample]:
    """Drawings of one thing, seen and held-out combinations in turn."""
    found, index = [], 0
    while len(found) < count:
        sample = data.sample(77, index, unseen=index % 2 == 0)
        found += [sample] if len(sample.scene.things) == 1 else []
        index += 1
    return found


def blurred(picture: Image.Image) -> Image.Image:
    """About what an autoencoder does to it."""
    noise = np.random.default_rng(0).normal(0, 6, (*reversed(picture.size), 3))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)))
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("change", [lambda picture: picture, blurred], ids=["as drawn", "blurred"])
def test_attributes_are_read_from_the_pixels(change):
    right: Counter[str] = Counter()
    samples = drawings(200)
    for sample in samples:
        reading = read.read(change(sample.picture))
        right.update(name for name in ATTRIBUTES if reading.agrees(sample.scene.things[0], name))
    assert min(right[name] for name in ATTRIBUTES) >= 0.97 * len(samples), right


def test_a_crop_of_two_things_is_read_too():
    left = data.Thing("star", "red", "plain", "small", "left")
    right = data.Thing("ring", "blue", "striped", "small", "right")
    picture = data.draw(data.Scene((left, right), "white"), np.random.default_rng(0))
    for thing, box in ((left, (0, 0, 64, 128)), (right, (64, 0, 128, 128))):
        reading = read.read(picture.crop(box))
        assert (reading.shape, reading.colour, reading.texture) == (thing.shape, thing.colour, thing.texture)


@pytest.mark.parametrize("colour", [(200, 220, 230), (10, 10, 10)])
def test_nothing_is_read_from_an_empty_picture(colour):
    assert read.read(Image.new("RGB", (128, 128), colour)) == read.Reading()


def test_pictures_are_the_same_every_time():
    first, second = data.sample(3, 8), data.sample(3, 8)
    assert first.picture.tobytes() == second.picture.tobytes()
    assert first.caption == second.caption
    assert first.scene == data.scene_of(3, 8)
    assert data.sample(3, 9).picture.tobytes() != first.picture.tobytes()
    assert data.sample(4, 8).picture.tobytes() != first.picture.tobytes()


def test_training_never_sees_a_held_out_combination():
    seen = [thing for index in range(2000) for thing in data.scene_of(1, index).things]
    assert not any(data.held_out(thing) for thing in seen)
    assert all(data.held_out(data.scene_of(1, index, unseen=True).things[0]) for index in range(300))
    kinds = [
        data.Thing(shape, colour, texture, "large", "centre")
        for shape in data.SHAPES
        for colour in data.COLOURS
        for texture in data.TEXTURES
    ]
    assert sum(map(data.held_out, kinds)) == 32
    # Each pair of attributes is seen in another combination, so that there is something to learn it from.
    assert len({(t.shape, t.colour) for t in seen}) == 64
    assert len({(t.colour, t.texture) for t in seen}) == len({(t.shape, t.texture) for t in seen}) == 32


def test_captions_name_some_attributes_and_the_full_one_all():
    scene = data.Scene((data.Thing("heart", "pink", "dotted", "small", "left"),), "mint")
    assert data.caption(scene) == "a small dotted pink heart on the left on a mint background"
    rng = np.random.default_rng(0)
    some = {data.caption(scene, rng) for _ in range(200)}
    assert len(some) > 30
    assert "a pink heart" in some
    assert not any("striped" in text or "star" in text for text in some)
