"""Where a unit acts in a job: its mask, or what inpainting repaints. An empty region is an error: the picture would be
the base model's without a word."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..attention.region import Region, finished, of_picture
from ..errors import UnitError
from ..unit import Unit

_LEAST = 4 / 255  # what lossy formats make of black


def of_mask(unit: Unit, mask: Image.Image, size: tuple[int, int]) -> Region:
    """The region of the unit's mask. size: width and height of the whole picture, pixels. Raises UnitError."""
    if unit.feather and (mask.width > size[0] or mask.height > size[1]):
        # The blur costs its width for each pixel, and is counted in pixels of the picture.
        mask = mask.convert("L").resize((min(mask.width, size[0]), min(mask.height, size[1])), Image.Resampling.BOX)
    down, across = unit.feather * mask.height / size[1], unit.feather * mask.width / size[0]
    values = of_picture(mask, unit.invert, (down, across))
    if float(values.max()) <= _LEAST:
        if unit.invert:
            raise UnitError("mask", "an inverted mask that is white all over", "one that is black where the unit acts")
        raise UnitError("mask", "a mask that is black all over", "one that is white where the unit acts")
    region = Region(values)
    cells = (-(-size[1] // 8), -(-size[0] // 8))  # of the latents
    if float(region.over(cells).max()) <= _LEAST:
        raise UnitError(
            "mask", "white spots so small that nothing is left of them in the model", "one with a larger white area"
        )
    return region


def to_be_redrawn(p: Any, unit: Unit) -> Region:
    """A region whose mask is known when sampling begins. Raises UnitError where nothing is inpainted."""
    if getattr(p, "image_mask", None) is None:
        raise UnitError(
            "region", unit.region, "mask, or a job with a mask in img2img's Inpaint",
            "Region inpaint needs a mask in img2img's Inpaint tab, expected one there, or region mask",
        )  # fmt: skip
    return Region(torch.ones(1, 1), moves=False)


def redrawn(p: Any, unit: Unit) -> Tensor:
    """What is inpainted, of the latents [h, w]; the WebUI has cropped and blurred it. Raises UnitError."""
    given = getattr(p, "nmask", None)
    if given is None:
        raise UnitError("region", unit.region, "mask, since the inpainting mask is empty")
    mask = given.detach().float().cpu()
    values = finished(mask.reshape(-1, *mask.shape[-2:])[0], unit.invert, unit.feather / 8)
    if float(values.max()) <= _LEAST:
        left = "invert false, since all of the picture is inpainted" if unit.invert else "a job that inpaints something"
        raise UnitError("region", unit.region, left)
    return values
