"""Where in the picture a unit acts: a mask, exact at every resolution that a UNet works at.

A UNet halves height and width at each downsampling, rounding up. So a token of a deeper layer stands for 2 x 2 of
the level above it, at the right and lower edge for what is left of them, and its mask is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import RowsError

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of width and height
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_LEVELS = 8


def within(outer: Box, inner: Box) -> Box:
    """``inner``, whose shares are those of ``outer``, as shares of what ``outer``'s are."""
    (x, y, right, bottom), (left, top, end, foot) = outer, inner
    width, height = right - x, bottom - y
    return x + left * width, y + top * height, x + end * width, y + foot * height


class Region:
    """A mask [H, W] of float32 in 0..1, 1 where the unit acts, of any size and proportion. It lies over the whole
    picture; with ``moves`` False over whatever the latents show."""

    def __init__(self, mask: Tensor, moves: bool = True) -> None:
        self.mask = mask
        self.moves = moves
        self._held: dict[tuple[object, ...], Tensor] = {}

    def show(self, mask: Tensor) -> None:
        """Another mask in the place of the one so far."""
        self.mask = mask
        self._held.clear()

    def at(
        self, size: tuple[int, int], tokens: int, like: Tensor, box: Box = WHOLE, tile: Box = WHOLE
    ) -> Tensor:
        """The mask [1, tokens, 1] of a layer, in the dtype and on the device of ``like``.

        size: height and width of the latents of this UNet call, which are ``tile`` of latents that show ``box`` of the
        picture. Raises RowsError when no level of such latents has so many tokens.
        """
        box = within(box if self.moves else WHOLE, tile)
        where = (size, tokens, box, like.dtype, like.device)
        if where not in self._held:
            held = level(self._over_latents(size, box), tokens)
            self._held[where] = held.reshape(1, tokens, 1).to(like.device, like.dtype)
        return self._held[where]

    def of_rows(
        self, size: tuple[int, int], tokens: int, like: Tensor, places: Sequence[tuple[Box, Box]]
    ) -> Tensor:
        """As ``at``, of rows with these boxes and tiles: [rows, tokens, 1], [1, tokens, 1] where all are the same."""
        same = len(set(places)) == 1
        return torch.cat([self.at(size, tokens, like, *place) for place in (places[:1] if same else places)])

    def _over_latents(self, size: tuple[int, int], box: Box) -> Tensor:
        """The mask's mean over each latent [h, w] of the box."""
        height, width = self.mask.shape
        columns = _shares(width, box[0] * width, box[2] * width, size[1])
        rows = _shares(height, box[1] * height, box[3] * height, size[0])
        # In float64, so that what is 1 or 0 all over stays so.
        return (rows @ self.mask.double() @ columns.T).clamp(0, 1).float()


def _shares(pixels: int, begin: float, end: float, cells: int) -> Tensor:
    """[cells, pixels]: of which pixels each of ``cells`` between ``begin`` and ``end`` is the mean, by area. A cell
    beyond the mask is the pixel at its edge."""
    edges = torch.linspace(begin, end, cells + 1, dtype=torch.float64)
    left, right = edges[:-1, None], edges[1:, None]
    at = torch.arange(pixels, dtype=torch.float64)
    covered = (torch.minimum(right, at + 1) - torch.maximum(left, at)).clamp(min=0)
    nearest = ((left + right) / 2).floor().clamp(0, pixels - 1) == at
    covered = torch.where(covered.sum(1, keepdim=True) > 1e-9, covered, nearest.double())
    shares: Tensor = covered / covered.sum(1, keepdim=True)
    return shares


def halved(size: tuple[int, int], depth: int) -> tuple[int, int]:
    """Height and width of latents of ``size`` after so many downsamplings."""
    for _ in range(depth):
        size = -(-size[0] // 2), -(-size[1] // 2)
    return size


def depth_of(size: tuple[int, int], tokens: int) -> int | None:
    """After how many downsamplings latents of this height and width have so many tokens; None: at no level."""
    found = (depth for depth in range(_LEVELS) if math.prod(halved(size, depth)) == tokens)
    return next(found, None)


def level(mask: Tensor, tokens: int) -> Tensor:
    """Of a mask [h, w] over the latents, that of the level with ``tokens`` tokens. Raises RowsError."""
    height, width = mask.shape
    depth = depth_of((height, width), tokens)
    if depth is None:
        raise RowsError(
            f"a cross-attention layer has {tokens} tokens, which is no level of latents of {height} x {width}: another "
            "extension rearranges them in a way that a region mask cannot follow. Disable it, or take the mask out"
        )
    for _ in range(depth):
        mask = F.avg_pool2d(mask[None], 2, ceil_mode=True, count_include_pad=False)[0]
    return mask


def of_picture(picture: Image.Image, invert: bool = False, feather: float = 0.0) -> Tensor:
    """The mask [H, W] of a picture: its brightness, 1 where it is white. feather: as ``finished`` has it."""
    values = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32) / 255)
    return finished(values, invert, feather)


def finished(mask: Tensor, invert: bool, feather: float) -> Tensor:
    """A mask [H, W] turned over where that is wanted, its edge blurred by a Gaussian of deviation ``feather``, in its
    own pixels."""
    mask = 1 - mask if invert else mask
    if feather <= 0:
        return mask
    reach = min(int(3 * feather + 0.5) + 1, 4096)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / feather) ** 2)
    kernel = kernel / kernel.sum()
    blurred = mask[None, None]
    for shape, pad in (((1, 1, -1, 1), (0, 0, reach, reach)), ((1, 1, 1, -1), (reach, reach, 0, 0))):
        blurred = F.conv2d(F.pad(blurred, pad, mode="replicate"), kernel.view(*shape))
    return blurred[0, 0].clamp(0, 1)
