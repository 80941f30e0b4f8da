"""Where a job stands: inside another one, in a script's pass, on a tile of a larger picture.

The WebUI does not tell a Script who started a job, and after an exception no callback comes that would end a record of
the jobs under way. What is true of them at any moment is the call stack, so it is read there. Pure: imports no
``modules``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..attention.region import WHOLE, Box, within
from ..unit import Unit
from .stack import callers, is_in, module_of, variables
from .stack import jobs as jobs_of

_UPSCALE, _LOOPBACK = "upscal", "loopback"  # what a script's title has
Size = tuple[int, int]  # width, height
Part = tuple[tuple[Box, ...], Size]  # the boxes of a job's images, and the size of the whole picture
_TILED = ("tile_methods", "lib_multidiffusion")  # packages of Tiled Diffusion and of Forge
PLACE_UNKNOWN = (
    "IP-Adapter: which part of the picture this script samples is not known, so mask and pose were applied to each part"
)


@dataclass(frozen=True)
class Place:
    """Where a job stands. around: the job inside which it runs; boxes: the part of the whole picture that each image of
    the batch is, or one for all, and whether that is known; size: width and height of the whole picture, pixels."""

    detailer: bool = False
    upscale: bool = False
    loopback: bool = False  # a pass after the first
    around: Any = None
    boxes: tuple[Box, ...] = (WHOLE,)
    known: bool = True
    size: Size = (1, 1)
    detail: int | None = None  # of a job inside another one: which of that one's picture, None if not known

    def lets(self, unit: Unit) -> bool:
        """Whether the unit's switches let it act here."""
        switches = (
            (True, unit.in_detailer != ("no" if self.detailer else "only")),
            (self.upscale, unit.in_upscale),
            (self.loopback, unit.in_loopback),
        )
        return all(on for here, on in switches if here)


class Following:
    """Finds out where jobs stand. Remembers with what the running script's first pass began."""

    def __init__(self) -> None:
        self._first: tuple[Any, Any] = (None, None)

    def place(self, p: Any, run_of: Callable[[Any], Any]) -> Place:
        """Of ``p``, to be called while it is processed. run_of: a job's Run, or None."""
        frames = list(callers())
        jobs = jobs_of(frames)
        around = jobs[1] if len(jobs) > 1 else None
        title, run = _script(frames)
        upscale = _UPSCALE in title
        loopback = _LOOPBACK in title and not upscale and self._repeats(run, jobs[-1] if jobs else p)
        detailer = around is not None or bool(getattr(p, "_ad_inner", False))
        part = _inside(around, run_of) or (_tile(frames, p) if upscale else None)
        boxes, size = part or ((WHOLE,), whole_size(p))
        known = part is not None or not upscale or is_cut(p)
        outer = None if around is None else run_of(around)
        detail = outer.next_detail() if outer is not None else None
        return Place(detailer, upscale, loopback, around, boxes, known, size, detail)

    def _repeats(self, run: Any, p: Any) -> bool:
        """Whether this pass of the script's run starts from another picture than its first pass."""
        image = (getattr(p, "init_images", None) or [None])[0]
        if self._first[0] is not run:
            self._first = run, image
        return self._first[1] is not image


def _script(frames: Sequence[FrameType]) -> tuple[str, Any]:
    """Of the script chosen under the panel, where one is running: its title in lower case, and an object that exists
    once per run."""
    for frame in frames:
        if is_in(frame, "modules.scripts", "run"):
            local = variables(frame)
            script = local.get("script")
            return str(script.title()).lower() if script else "", local.get("script_args")
    return "", None


def _inside(around: Any, run_of: Callable[[Any], Any]) -> Part | None:
    """Of a job inside another one that has a Run: the picture of that one which it works on."""
    outer = None if around is None else run_of(around)
    if outer is None:
        return None
    image = getattr(around, "batch_index", 0) if len(outer.boxes) > 1 else 0
    return (outer.boxes[image],), outer.place.size


def _tile(frames: Sequence[FrameType], p: Any) -> Part | None:
    """Of a job whose init images are tiles of a grid (modules.images.split_grid) of the running script."""
    images = getattr(p, "init_images", None) or []
    for grid in _grids(frames):
        boxes = {id(tile): _box(grid, x, y) for y, _, row in grid.tiles for x, _, tile in row}
        if images and all(id(image) in boxes for image in images):
            return tuple(boxes[id(image)] for image in images), (grid.image_w, grid.image_h)
    return None


def _grids(frames: Sequence[FrameType]) -> Iterator[Any]:
    """The grids in the variables of the running script's functions, which lie between the WebUI's call of the script
    and the script's call of the job."""
    inside = False
    for frame in frames:
        if is_in(frame, "modules.scripts", "run"):
            return
        if module_of(frame).startswith("modules."):
            inside = inside or is_in(frame, "modules.processing", "process_images")
        elif inside:
            for value in variables(frame).values():
                if (type(value).__module__, type(value).__name__) == ("modules.images", "Grid"):
                    yield value


def _box(grid: Any, x: int, y: int) -> Box:
    return _fractions((x, y, grid.tile_w, grid.tile_h), (grid.image_w, grid.image_h))


def _fractions(part: tuple[int, int, int, int], whole: tuple[int, int]) -> Box:
    (x, y, w, h), (width, height) = part, whole
    return x / width, y / height, (x + w) / width, (y + h) / height


def is_cut(p: Any) -> bool:
    """Whether p itself says which part of its picture it samples, as Ultimate SD upscale's jobs do."""
    return bool(getattr(p, "inpaint_full_res", False)) and getattr(p, "image_mask", None) is not None


def whole_size(p: Any) -> Size:
    """Of p's whole picture: of a job that samples a part, the one that the part is cut from; of a hires fix to another
    shape, what the WebUI leaves of the first pass's picture. To be called before that is reckoned, in ``p.init``."""
    if is_cut(p):
        return p.image_mask.width, p.image_mask.height
    across, down = getattr(p, "hr_resize_x", 0), getattr(p, "hr_resize_y", 0)
    if not (getattr(p, "enable_hr", False) and across and down):
        return p.width, p.height
    return min(p.width, round(p.height * across / down)), min(p.height, round(p.width * down / across))


def cut_of(p: Any) -> Box | None:
    """The part that is inpainted alone and put back into the picture."""
    cut = getattr(p, "paste_to", None)
    return _fractions(cut, p.image_mask.size) if is_cut(p) and cut else None


def part_of_latents(p: Any) -> Box:
    """What part of p's picture the latents show: of one whose masked part alone is inpainted, that part; in the first
    pass of a hires fix that cuts edges off, more than the picture."""
    cut = cut_of(p)
    if cut is not None:
        return cut
    if getattr(p, "enable_hr", False) and not p.is_hr_pass and (p.truncate_x or p.truncate_y):
        across, down = p.hr_upscale_to_x // 8 - p.truncate_x, p.hr_upscale_to_y // 8 - p.truncate_y
        left, top = p.truncate_x // 2 / across, p.truncate_y // 2 / down
        return -left, -top, 1 + p.truncate_x / across - left, 1 + p.truncate_y / down - top
    return WHOLE


def boxes_of(p: Any, around: Sequence[Box]) -> tuple[Box, ...]:
    """What part of the whole picture the latents show; ``around``: what parts of it p's pictures are."""
    box = part_of_latents(p)
    return tuple(within(outer, box) for outer in around)


def latent_tiles(whole: tuple[int, int], tile: tuple[int, int]) -> tuple[Box, ...]:
    """The boxes of the tiles that the UNet is called with, side by side; () where they are not known. Sizes are
    heights and widths of latents. Of Tiled Diffusion (MultiDiffusion, Mixture of Diffusers) and Forge's copy of it: the
    function that cuts the tiles has those of a call as ``bboxes``, or a region's one as ``bbox``."""
    for frame in callers():
        if module_of(frame).partition(".")[0] not in _TILED:
            continue
        local = variables(frame)
        tiles = local["bboxes"] if "bboxes" in local else [local["bbox"]] if "bbox" in local else None
        if tiles is None:
            continue
        if not isinstance(tiles, list) or not all(
            (getattr(box, "h", None), getattr(box, "w", None)) == tile for box in tiles
        ):
            return ()
        return tuple(_fractions((box.x, box.y, box.w, box.h), (whole[1], whole[0])) for box in tiles)
    return ()
