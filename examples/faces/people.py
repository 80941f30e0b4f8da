"""People that do not exist, several pictures of each.

A person is a point in the generator's latent space; a picture of the person is a point near it: what changes is
expression, light, pose, hair and background, and the face a little. How far the pictures of one person are still one
person is measured (retrieval.py) and not assumed. Every picture is turned and cut by the detector's five points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib_ipadapter.faces.align import similarity, template
from lib_ipadapter.faces.detect import Face
from lib_ipadapter.faces.runtime import cv2

Pixels = NDArray[np.uint8]
LATENT = 100
SIDE = 64  # pixels of a picture
LOOKED_AT = 128  # pixels at which faces are looked for
SPREAD = 0.3  # distance of a picture's latent from its person's, as a fraction of the distance of two people
MIN_SCORE = 0.88  # of the detector: the generator also makes what is no face
SCALE, TOP = 1.2, -10  # of ArcFace's template at LOOKED_AT; where it begins, pixels from above
BATCH = 64
Find = Callable[[Pixels], Face | None]


def generator(weights: Mapping[str, Tensor]) -> nn.Module:
    """The DCGAN: latents [B, LATENT, 1, 1] to pictures [B, 3, 64, 64] in -1..1."""
    layers: list[nn.Module] = []
    widths = (LATENT, 512, 256, 128, 64)
    for n, (wide, narrow) in enumerate(pairwise(widths)):
        step = (4, 2, 1) if n else (4, 1, 0)
        layers += [nn.ConvTranspose2d(wide, narrow, *step, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    net = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh())
    net.load_state_dict({key.removeprefix("main."): value for key, value in weights.items()})
    return net.eval()


@dataclass(frozen=True)
class Person:
    """number: of the latent; pictures [K, SIDE, SIDE, 3]."""

    number: int
    pictures: Pixels


def latents(seed: int, number: int, count: int) -> Tensor:
    """``count`` points near one person's, each of a normal distribution as the generator was trained on: [count,
    LATENT]."""
    rng = np.random.default_rng([seed, number])
    person, apart = rng.standard_normal(LATENT), rng.standard_normal((count, LATENT))
    return torch.from_numpy((1 - SPREAD**2) ** 0.5 * person + SPREAD * apart).float()


def people(net: nn.Module, find: Find, seed: int, count: int) -> Iterator[Person]:
    """Endless people with ``count`` pictures each; left out are those of whom one picture has no clear face."""
    number, at_once = 0, max(1, BATCH // count)
    while True:
        drawn = _draw(net, torch.cat([latents(seed, number + i, count) for i in range(at_once)]))
        for i in range(at_once):
            made = [aligned(picture, find) for picture in drawn[i * count : (i + 1) * count]]
            if all(picture is not None for picture in made):
                yield Person(number + i, np.stack([picture for picture in made if picture is not None]))
        number += at_once


def aligned(picture: Pixels, find: Find) -> Pixels | None:
    """The picture [LOOKED_AT, LOOKED_AT, 3] turned and cut so that the face's points lie near a place, its border
    repeated: [SIDE, SIDE, 3]. None without a clear face."""
    face = find(picture)
    if face is None or face.score < MIN_SCORE:
        return None
    at = template(112) * SCALE + [(LOOKED_AT - 112 * SCALE) / 2, TOP]
    matrix = similarity(np.asarray(face.points), at)
    turned = cv2().warpAffine(
        picture, matrix, (LOOKED_AT, LOOKED_AT), flags=cv2().INTER_CUBIC, borderMode=cv2().BORDER_REPLICATE
    )
    small: Pixels = cv2().resize(turned, (SIDE, SIDE), interpolation=cv2().INTER_AREA)
    return small


@torch.no_grad()
def _draw(net: nn.Module, points: Tensor) -> list[Pixels]:
    """[LOOKED_AT, LOOKED_AT, 3] each."""
    made = (net(points[:, :, None, None]) + 1) * 127.5
    pixels = made.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [cv2().resize(one, (LOOKED_AT, LOOKED_AT), interpolation=cv2().INTER_CUBIC) for one in pixels]
