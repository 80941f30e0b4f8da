"""Where a unit acts in a job: its mask, or what inpainting repaints. An empty region is an error: the picture would be
the base model's without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..attention.region import Box, Region, finished, of_picture
from ..errors import UnitError
from ..faces import FaceAnalyser, choose
from ..pictures import images
from ..unit import Unit
from .following import Place, is_cut, part_of_latents

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


def of_face(p: Any, unit: Unit, place: Place, faces: FaceAnalyser) -> Region:
    """The region around a face of the picture that is redrawn. Raises UnitError, FaceError."""
    pictures: Any = getattr(p, "init_images", None) or ()
    if len(pictures) != 1 or not isinstance(pictures[0], Image.Image) or place.upscale:
        raise UnitError(
            "region", unit.region, "mask, or a job that redraws one picture: img2img, inpaint, a detail, a hires pass",
            "Region face needs one picture that is redrawn, to look for a face in it: use img2img, or let the unit act "
            "in the hires pass only (batch size 1), or in details only",
        )  # fmt: skip
    picture = images.load(pictures[0])
    size = picture.size if is_cut(p) else (p.width, p.height)
    corners = _corners(picture, unit, faces)
    if not is_cut(p):
        corners = [resized(one, picture.size, size, int(getattr(p, "resize_mode", 0))) for one in corners]
    # A detail's picture may be a part of the whole one, whose places the rows have.
    whole = place.size if place.around is not None else size
    values = _boxed(_placed(corners, size, place.boxes[0], whole), whole, unit)
    # Of a detail or a part it may be: another one's face is elsewhere.
    if place.around is None and not is_cut(p):
        _refuse_empty(values, unit)
    return Region(values)


def _refuse_empty(values: Tensor, unit: Unit) -> None:
    """Raises UnitError for the region of a face that is nowhere in the picture."""
    if float(values.max()) > _LEAST:
        return
    if unit.invert:
        expected = "off, or a smaller grow: the region around the face is all of the picture"
        raise UnitError("invert", unit.invert, expected)
    raise UnitError(
        "region_face", unit.region_face, "a face that is still seen after img2img has cropped the picture; use another "
        "resize mode, or another face",
    )  # fmt: skip


def awaits_hires(p: Any, unit: Unit) -> bool:
    """Whether the picture in which a face is looked for is that of the job's first pass."""
    hires = bool(getattr(p, "enable_hr", False)) and not getattr(p, "init_images", None)
    return hires and unit.passes == "hires" and p.batch_size == 1


def face_in_hires(p: Any, picture: Image.Image, unit: Unit, faces: FaceAnalyser) -> Tensor:
    """The mask [H, W] around a face of the first pass's picture, which may show more than the hires pass keeps. To be
    called before that begins. Raises UnitError, FaceError."""
    whole = p.width, p.height
    values = _boxed(_placed(_corners(picture, unit, faces), picture.size, part_of_latents(p), whole), whole, unit)
    _refuse_empty(values, unit)
    return values


def _placed(
    points: Sequence[tuple[float, float]], size: tuple[int, int], part: Box, whole: tuple[int, int]
) -> list[tuple[float, float]]:
    """Points of a picture of ``size`` that is ``part`` of one of the size ``whole``, in that one."""
    left, top, right, bottom = part
    return [
        ((left + x / size[0] * (right - left)) * whole[0], (top + y / size[1] * (bottom - top)) * whole[1])
        for x, y in points
    ]


def _corners(picture: Image.Image, unit: Unit, faces: FaceAnalyser) -> list[tuple[float, float]]:
    """Of the chosen face's box, grown."""
    found = faces.faces(picture, "the picture that is redrawn")
    left, top, right, bottom = choose(found, unit.region_face, picture.size, "region_face").box
    across, down = unit.grow * (right - left) / 2, unit.grow * (bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return [(x - across, y - down), (x + across, y + down)]


def _boxed(corners: Sequence[tuple[float, float]], size: tuple[int, int], unit: Unit) -> Tensor:
    (begin, upper), (end, lower) = corners
    covered = _covered(upper, lower, size[1])[:, None] * _covered(begin, end, size[0])
    return finished(covered, unit.invert, unit.feather)


def _covered(begin: float, end: float, pixels: int) -> Tensor:
    """How much of each of so many pixels lies between two places."""
    left = torch.arange(pixels, dtype=torch.float32)
    return ((left + 1).clamp(max=end) - left.clamp(min=begin)).clamp(0, 1)


def resized(
    point: tuple[float, float], size: tuple[int, int], target: tuple[int, int], mode: int
) -> tuple[float, float]:
    """A point of a picture of ``size`` where the WebUI brings it to ``target``: stretched (0, 3), cropped (1), or
    filled up (2)."""
    across, down = target[0] / size[0], target[1] / size[1]
    if mode in (1, 2):
        across = down = max(across, down) if mode == 1 else min(across, down)
    return (
        point[0] * across + (target[0] - size[0] * across) / 2,
        point[1] * down + (target[1] - size[1] * down) / 2,
    )


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
        if unit.invert:
            raise UnitError("region", unit.region, "invert false, since all of the picture is inpainted")
        raise UnitError(
            "region", unit.region, "a job that inpaints something",
            "region is inpaint, but nothing is inpainted: paint over the part of the picture to redraw, or set region "
            "to mask",
        )  # fmt: skip
    return values
