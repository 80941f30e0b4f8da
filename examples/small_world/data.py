"""The pictures: objects with shape, colour, texture, size and place on a background, and captions of them.

Code and no files: picture ``index`` of seed ``seed`` is the same on every machine. A quarter of the
colour-shape pairs lack one texture in training (HELD_OUT, 32 of 256 combinations): those are the references
that nothing was ever trained on.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
SIDE = 128  # pixels

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
# name: hue in degrees
HUES = {
    "red": 0,
    "orange": 28,
    "yellow": 54,
    "green": 125,
    "cyan": 182,
    "blue": 222,
    "purple": 275,
    "pink": 322,
}
COLOURS = tuple(HUES)
TEXTURES = ("plain", "striped", "dotted", "checkered")
RADII = {"small": (24.0, 29.0), "large": (36.0, 43.0)}  # pixels
SIZES = tuple(RADII)
OFFSETS = {"left": (-20, 0), "right": (20, 0), "top": (0, -20), "bottom": (0, 20), "centre": (0, 0)}
PLACES = tuple(OFFSETS)
WORDS_OF_PLACE = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
    "centre": "in the centre",
}  # fmt: skip
# All of them light and pale, so that an object stands out
BACKGROUNDS = {
    "white": (245, 245, 245), "gray": (186, 186, 186), "beige": (231, 214, 186), "sky": (190, 214, 235),
    "mint": (192, 231, 206), "lavender": (215, 203, 235),
}  # fmt: skip
# What there is to say of a scene of one thing
OPTIONS = {
    "shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES, "place": PLACES,
    "background": tuple(BACKGROUNDS),
}  # fmt: skip
DARK = 0.28  # the second colour of a texture, as a share of the first
PAIRS = 0.2  # share of the pictures with two objects


@dataclass(frozen=True)
class Thing:
    """One object, by the names above."""

    shape: str
    colour: str
    texture: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, or two side by side (or one above the other)."""

    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True)
class Sample:
    """A picture, RGB, SIDE squared, with what it shows."""

    picture: Image.Image
    scene: Scene
    caption: str  # names some of the attributes
    full_caption: str  # names all


def held_out(thing: Thing) -> bool:
    """Whether training never sees this combination of shape, colour and texture."""
    code = SHAPES.index(thing.shape) + 3 * COLOURS.index(thing.colour) + 5 * TEXTURES.index(thing.texture)
    return code % 8 == 0


def sample(seed: int, index: int, unseen: bool = False) -> Sample:
    """Picture ``index`` of ``seed``; with ``unseen`` one held-out thing, else none of those."""
    rng = np.random.default_rng([seed, index, unseen])
    scene = _scene(rng, unseen)
    picture = draw(scene, rng)
    return Sample(picture, scene, caption(scene, rng), caption(scene))


def scene_of(seed: int, index: int, unseen: bool = False) -> Scene:
    """What picture ``index`` of ``seed`` shows, without drawing it."""
    return _scene(np.random.default_rng([seed, index, unseen]), unseen)


def _scene(rng: np.random.Generator, unseen: bool) -> Scene:
    background = str(rng.choice(list(BACKGROUNDS)))
    if unseen or rng.random() >= PAIRS:
        return Scene((_thing(rng, unseen),), background)
    places = (("left", "right"), ("top", "bottom"))[int(rng.integers(2))]
    first, second = (replace(_thing(rng, False), size="small", place=place) for place in places)
    return Scene((first, second), background)


def _thing(rng: np.random.Generator, unseen: bool) -> Thing:
    while True:
        kinds = (SHAPES, COLOURS, TEXTURES, SIZES, PLACES)
        thing = Thing(*(str(rng.choice(names)) for names in kinds))
        if held_out(thing) == unseen:
            return thing


# words


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A caption that names some attributes, drawn by ``rng``, or without it all of them."""

    def named(share: float) -> bool:
        return rng is None or bool(rng.random() < share)

    things = []
    for thing in scene.things:
        words = [thing.size] * named(0.3) + [thing.texture] * named(0.5) + [thing.colour] * named(0.7)
        words.append(thing.shape if named(0.8) else "shape")
        text = f"a {' '.join(words)}"
        if named(0.25):
            text += f" {WORDS_OF_PLACE[thing.place]}"
        things.append(text)
    text = " and ".join(things)
    return f"{text} on a {scene.background} background" if named(0.3) else text


def named(text: str) -> dict[str, str]:
    """What a caption of one thing names, by OPTIONS' names."""
    phrases = {"place": WORDS_OF_PLACE, "background": {name: f"{name} background" for name in BACKGROUNDS}}
    return {
        kind: name
        for kind, names in OPTIONS.items()
        for name in names
        if f" {phrases.get(kind, {}).get(name, name)} " in f" {text} "
    }


# pixels


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene; ``rng`` moves, turns and tints what the names leave open."""
    axis = np.arange(SIDE) - (SIDE - 1) / 2
    x, y = np.meshgrid(axis, axis)
    ground = np.array(BACKGROUNDS[scene.background]) / 255 + rng.uniform(-0.02, 0.02, 3)
    canvas = np.broadcast_to(ground, (SIDE, SIDE, 3)).copy()
    apart = 30 / 20 if len(scene.things) > 1 else 1.0
    for thing in scene.things:
        cover, colours = _object(thing, x, y, apart, rng)
        canvas = canvas * (1 - cover[..., None]) + colours * cover[..., None]
    return Image.fromarray((canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _object(
    thing: Thing, x: Floats, y: Floats, apart: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """(cover [H, W] in 0..1, colours [H, W, 3])."""
    dx, dy = OFFSETS[thing.place]
    x, y = x - dx * apart - rng.uniform(-4, 4), y - dy * apart - rng.uniform(-4, 4)
    angle = np.deg2rad(rng.uniform(-12, 12))
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = rng.uniform(*RADII[thing.size])
    cover = (0.5 - DISTANCES[thing.shape](x, y, radius)).clip(0, 1)
    hue = (HUES[thing.colour] + rng.uniform(-5, 5)) % 360 / 360
    colour = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.82, 0.95), rng.uniform(0.85, 0.98)))
    dark = texture(thing.texture, x, y, rng)[..., None]
    return cover, colour * (1 - dark + DARK * dark)


def texture(name: str, x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """How much of the dark colour each pixel has, 0..1."""
    shift_x, shift_y = rng.uniform(0, 16, 2)
    x, y = x + shift_x, y + shift_y
    if name == "striped":
        return _edge(np.sin(2 * np.pi * (x + y) / 2**0.5 / 15), 15 / (2 * np.pi))
    if name == "checkered":
        return _edge(np.sin(np.pi * x / 11) * np.sin(np.pi * y / 11), 11 / np.pi)
    if name == "dotted":
        near_x, near_y = (x + 8) % 16 - 8, (y + 8) % 16 - 8
        return (4.8 - np.hypot(near_x, near_y) + 0.5).clip(0, 1)
    return np.zeros_like(x)


def _edge(wave: Floats, pixels: float) -> Floats:
    return (wave * pixels + 0.5).clip(0, 1)


# Signed distances to the outline in pixels, negative inside: x to the right, y down, radius of the outer circle


def _circle(x: Floats, y: Floats, r: float) -> Floats:
    return np.hypot(x, y) - 0.92 * r


def _square(x: Floats, y: Floats, r: float) -> Floats:
    return np.maximum(abs(x), abs(y)) - 0.8 * r


def _triangle(x: Floats, y: Floats, r: float) -> Floats:
    y = y - 0.2 * r
    return np.maximum(abs(x) * 0.866 - y * 0.5, y) - 0.55 * r


def _star(x: Floats, y: Floats, r: float) -> Floats:
    r = 1.1 * r
    angle = np.arctan2(x, -y)
    folded = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    across, along = np.hypot(x, y) * np.sin(folded), np.hypot(x, y) * np.cos(folded)
    inner = 0.45 * r
    tip, notch = np.array([r, 0.0]), np.array([inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)])
    edge = (notch - tip) / np.hypot(*(notch - tip))
    return (along - tip[0]) * edge[1] - across * edge[0]


def _heart(x: Floats, y: Floats, r: float) -> Floats:
    u, v = x / (0.86 * r), -y / (0.86 * r) + 0.08
    value = (u**2 + v**2 - 1) ** 3 - u**2 * v**3
    slope_y, slope_x = np.gradient(value)
    return value / np.maximum(np.hypot(slope_x, slope_y), 1e-4)


def _cross(x: Floats, y: Floats, r: float) -> Floats:
    x, y = abs(x), abs(y)
    return np.minimum(np.maximum(x - 0.3 * r, y - 0.95 * r), np.maximum(y - 0.3 * r, x - 0.95 * r))


def _ring(x: Floats, y: Floats, r: float) -> Floats:
    return abs(np.hypot(x, y) - 0.72 * r) - 0.25 * r


def _diamond(x: Floats, y: Floats, r: float) -> Floats:
    return (abs(x) / 0.62 + abs(y) - 1.05 * r) * 0.53


DISTANCES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart,
    "cross": _cross, "ring": _ring, "diamond": _diamond,
}  # fmt: skip
