"""What is said below the pictures of a job in which a unit had no effect."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..attention.session import ImagePrompt
from ..unit import Unit

NO_DETAIL = (
    "IP-Adapter: a unit acts in details only, and no detail was drawn with it. Switch a detailer on that "
    "finds something, and list ip_adapter among its script names"
)


def never_acted(
    units: Sequence[tuple[int, Unit, ImagePrompt]], idle: Collection[int], acted: Collection[int]
) -> list[str]:
    """On units with their places, of which no step computed a term. idle: places of those of which that was said;
    acted: ids of prompts that acted, and of what ran beside the UNet for one."""
    remarks = [
        f"IP-Adapter unit {index + 1}: its ControlNet acted in no step, so nothing held the pose: see its pose "
        "start and pose end, which count within the unit's own start and end"
        for index, _, prompt in units
        if prompt.beside and id(prompt) in acted and id(prompt.beside) not in acted
    ]
    return remarks + [
        f"IP-Adapter unit {index + 1} acted in no step, so the pictures are without it: see its start, end, "
        "curve and layers; or another extension replaces the attention that it acts in"
        for index, _, prompt in units
        if prompt.weight and index not in idle and id(prompt) not in acted
    ]
