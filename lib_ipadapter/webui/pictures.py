"""Pictures in texts: the ids by which an infotext names a unit's, and base64 of one."""

from __future__ import annotations

import base64
import io

from PIL import Image

from ..prompts.resolve import ResolvedUnit
from ..unit import Unit
from .infotext import Hashes


def hashes(resolved: ResolvedUnit, asked: Unit) -> Hashes:
    """What the infotext keeps, for the unit that was asked for, whose references may be saved ones. Raises
    ImageError."""
    others: dict[str, str | list[str]] = {}
    if resolved.negative:
        others["negative"] = [picture.id for picture in resolved.negative]
    if resolved.pose:
        others["pose"] = resolved.pose.id
    masks = {"focus": resolved.reference_mask, "mask": resolved.mask}
    others.update((name, picture.id) for name, picture in masks.items() if picture)
    known = {id(reference): i for i, reference in enumerate(resolved.unit.images)}
    places = [known.get(id(reference)) for reference in asked.images]
    masks_of = [None if place is None else resolved.own_masks[place] for place in places]
    return Hashes(
        ["" if place is None else resolved.references[place].id for place in places],
        others,
        ["" if mask is None else mask.id for mask in masks_of],
    )


def as_base64(picture: Image.Image) -> str:
    """A PNG, as the WebUI's API gives pictures."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
