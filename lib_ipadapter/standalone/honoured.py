"""Which fields of a unit the commands use: the others are refused, not ignored; and where a unit acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from ..attention.region import Region, of_picture
from ..attention.session import ImagePrompt
from ..errors import UnitError
from ..pictures import images
from ..unit import FIELDS, Unit

_NO_CONTROL = "InstantID's ControlNet runs in the WebUI only"
_NO_SCRIPTS = "there are no other scripts on the command line"
GENERATE: Mapping[str, str] = {  # what it cannot use, and why
    "maps": "maps are drawn in the WebUI only",
    "hires_factor": "there is no hires pass on the command line",
    "in_detailer": _NO_SCRIPTS,
    "in_upscale": _NO_SCRIPTS,
    "in_loopback": _NO_SCRIPTS,
    "region_face": "region face is for the WebUI only",
    "grow": "region face is for the WebUI only",
    **dict.fromkeys(("pose", "pose_from", "pose_face", "pose_weight", "pose_start", "pose_end"), _NO_CONTROL),
}
EMBED = ("enabled", "model", "images", "fit", "position", "box", "sharpen", "focus", "face", "kind")  # what it uses


def check_generate(unit: Unit, inpaints: bool) -> None:
    """Raises UnitError for a field that ``generate`` cannot use. inpaints: whether it has a --mask."""
    for name, reason in GENERATE.items():
        _refuse(unit, name, reason)
    if unit.passes == "hires":
        raise UnitError("passes", unit.passes, "both or first: there is no hires pass on the command line")
    if unit.distribute == "one per detail":
        raise UnitError("distribute", unit.distribute, "together or one per picture: there are no details here")
    if unit.region == "face":
        raise UnitError("region", unit.region, "mask or inpaint: give the face as a mask on the command line")
    if unit.region == "inpaint" and not inpaints:
        raise UnitError("region", unit.region, "mask: without --mask nothing is inpainted")


def check_control(unit: Unit, posed: bool) -> None:
    """posed: whether the adapter comes with a ControlNet, which ``generate`` does not run. Raises UnitError unless that
    is what the unit says."""
    if unit.control_model != "none" and (posed or unit.control_model != "auto"):
        raise UnitError("control_model", unit.control_model, f"none, for the adapter alone: {_NO_CONTROL}")


def check_embed(unit: Unit) -> None:
    """Raises UnitError for a field that ``embed`` cannot use: it has no part in the encoder's features."""
    for field in FIELDS:
        if field.name not in EMBED:
            _refuse(unit, field.name, "embeds hold features only; give it when the embeds are used")


def _refuse(unit: Unit, name: str, reason: str) -> None:
    default = next(field.default for field in FIELDS if field.name == name)
    value = getattr(unit, name)
    if value != default:
        raise UnitError(name, value, f"{_text(default)}: {reason}")


def _text(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "nothing" if default in (None, (), "") else f"{default}"


def placed(
    prompts: Sequence[ImagePrompt], units: Sequence[Unit], size: tuple[int, int], inpaint: Image.Image | None
) -> list[ImagePrompt]:
    """The prompts with the regions of their units. size: width and height of the picture, in whose pixels a feather
    is; inpaint: the picture of --mask. Raises UnitError for a region that is empty, and ImageError."""
    found = []
    for index, (prompt, unit) in enumerate(zip(prompts, units, strict=True)):
        try:
            found.append(replace(prompt, region=_region(unit, size, inpaint)))
        except UnitError as error:
            raise error.in_unit(index) from None
    return found


def _region(unit: Unit, size: tuple[int, int], inpaint: Image.Image | None) -> Region | None:
    mask = None if unit.mask is None else images.load_mask(unit.mask)
    mask = inpaint if unit.region == "inpaint" else mask
    if mask is None:
        return None
    if unit.feather:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    area = of_picture(mask, unit.invert, unit.feather)
    if not area.any():
        field = "mask" if unit.region == "mask" else "region"
        colour = "white" if unit.invert else "black"
        raise UnitError(field, f"a mask that is {colour} all over", "a mask that leaves a part where the unit acts")
    return Region(area)
