"""Where in the picture a unit acts: a mask, exact at every resolution inside a UNet.

A UNet halves height and width at each downsampling, rounding up. So a token of a deeper layer covers 2 x 2 of the level
above it, less at the right and lower edges, and its mask is their mean. Extensions that rescale a block (Kohya
Hires.fix) give it other sizes: the mask is then resampled to the block's own.
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

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height
Size = tuple[int, int]  # height, width
Feather = float | tuple[float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_LEVELS = 8


def within(outer: Box, inner: Box) -> Box:
    """The crop ``inner`` of the crop ``outer``, as fractions of the whole."""
    (x, y, right, bottom), (left, top, end, foot) = outer, inner
    width, height = right - x, bottom - y
    return x + left * width, y + top * height, x + end * width, y + foot * height


class Region:
    """A mask [H, W] of float32 in 0..1, 1 where the unit acts, of any size and proportion. It covers the whole picture;
    if not ``moves``, whatever the latents show."""

    def __init__(self, mask: Tensor, moves: bool = True) -> None:
        self.mask = mask
        self.moves = moves
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def show(self, mask: Tensor) -> None:
        """Replaces the mask."""
        self.mask = mask
        self._cache.clear()

    def at(
        self,
        size: Size,
        tokens: int,
        like: Tensor,
        box: Box = WHOLE,
        tile: Box = WHOLE,
        grid: Size | None = None,
    ) -> Tensor:
        """The mask [1, tokens, 1] of a layer, in the dtype and on the device of ``like``.

        size: height and width of the latents of this UNet call, which are ``tile`` of latents that show ``box`` of the
        picture; grid: height and width of the layer's tokens, None if not known. Raises RowsError if the tokens are
        neither the grid's nor those of a level of such latents.
        """
        box = within(box if self.moves else WHOLE, tile)
        grid = grid if grid and grid[0] * grid[1] == tokens and not _is_level(grid, size) else None
        where = (size, tokens, box, grid, like.dtype, like.device)
        if where not in self._cache:
            # A block that was rescaled is no level: its tokens cover the picture evenly.
            mask = self.over(grid, box) if grid else level(self.over(size, box), tokens)
            self._cache[where] = mask.reshape(1, tokens, 1).to(like.device, like.dtype)
        return self._cache[where]

    def of_rows(
        self,
        size: Size,
        tokens: int,
        like: Tensor,
        places: Sequence[tuple[Box, Box]],
        grid: Size | None = None,
    ) -> Tensor:
        """As ``at``, for rows with these boxes and tiles: [rows, tokens, 1], [1, tokens, 1] if all are the same."""
        same = len(set(places)) == 1
        masks = [self.at(size, tokens, like, *place, grid) for place in (places[:1] if same else places)]
        return torch.cat(masks)

    def over(self, size: Size, box: Box = WHOLE) -> Tensor:
        """The mask's mean over each of h x w cells of the box, [h, w]."""
        height, width = self.mask.shape
        columns = _fractions(width, box[0] * width, box[2] * width, size[1])
        rows = _fractions(height, box[1] * height, box[3] * height, size[0])
        # In float64, so that a mask that is 1 or 0 everywhere stays so.
        return (rows @ self.mask.double() @ columns.T).clamp(0, 1).float()


def _fractions(pixels: int, begin: float, end: float, cells: int) -> Tensor:
    """[cells, pixels]: the fraction of each pixel in each of ``cells`` between ``begin`` and ``end``, by area. A cell
    outside the mask is the pixel at the edge."""
    edges = torch.linspace(begin, end, cells + 1, dtype=torch.float64)
    left, right = edges[:-1, None], edges[1:, None]
    at = torch.arange(pixels, dtype=torch.float64)
    covered = (torch.minimum(right, at + 1) - torch.maximum(left, at)).clamp(min=0)
    nearest = ((left + right) / 2).floor().clamp(0, pixels - 1) == at
    covered = torch.where(covered.sum(1, keepdim=True) > 1e-9, covered, nearest.double())
    fractions: Tensor = covered / covered.sum(1, keepdim=True)
    return fractions


def halved(size: Size, depth: int) -> Size:
    """Height and width of latents of ``size`` after so many downsamplings."""
    for _ in range(depth):
        size = -(-size[0] // 2), -(-size[1] // 2)
    return size


def depth_of(size: Size, tokens: int) -> int | None:
    """After how many downsamplings latents of this height and width have so many tokens; None: at no level."""
    found = (depth for depth in range(_LEVELS) if math.prod(halved(size, depth)) == tokens)
    return next(found, None)


def _is_level(grid: Size, size: Size) -> bool:
    depth = depth_of(size, math.prod(grid))
    return depth is not None and halved(size, depth) == grid


def level(mask: Tensor, tokens: int) -> Tensor:
    """The level with ``tokens`` tokens of a mask [h, w] over the latents. Raises RowsError."""
    height, width = mask.shape
    depth = depth_of((height, width), tokens)
    if depth is None:
        raise RowsError(
            f"a cross-attention layer has {tokens} tokens, which is no level of latents of {height} x {width}: another "
            "extension rearranges them in a way that a region mask cannot follow. Disable it, or remove the mask"
        )
    for _ in range(depth):
        mask = F.avg_pool2d(mask[None], 2, ceil_mode=True, count_include_pad=False)[0]
    return mask


def of_picture(picture: Image.Image, invert: bool = False, feather: Feather = 0.0) -> Tensor:
    """The mask [H, W] of a picture: its brightness, 1 for white. feather: as in ``finished``."""
    values = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32) / 255)
    return finished(values, invert, feather)


def finished(mask: Tensor, invert: bool, feather: Feather) -> Tensor:
    """A mask [H, W], inverted if asked for, then blurred by a Gaussian with the standard deviation ``feather``, in
    pixels of the mask; a pair is (down, across), for a mask whose pixels are not square in the picture."""
    mask = 1 - mask if invert else mask
    down, across = feather if isinstance(feather, tuple) else (feather, feather)
    return _blurred(_blurred(mask, down).T, across).T.clamp(0, 1) if down > 0 or across > 0 else mask


def _blurred(mask: Tensor, std: float) -> Tensor:
    """Blurred along its columns."""
    if std <= 0:
        return mask
    reach = min(int(3 * std + 0.5) + 1, 4096)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    padded = F.pad(mask[None, None], (0, 0, reach, reach), mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum()).view(1, 1, -1, 1))[0, 0]
