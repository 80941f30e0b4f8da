"""The picture of img2img as a reference: it is taken from the job when the job runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from ..errors import UnitError
from ..unit import Unit
from ..unit.fields import MAX_IMAGES, Reference
from ..unit.names import Named


def is_input(reference: Reference) -> bool:
    """Whether it stands for the picture of img2img."""
    return isinstance(reference.image, Named) and reference.image.kind == "input"


def with_inputs(unit: Unit, p: Any) -> Unit:
    """``unit`` with the pictures that job ``p`` redraws as references. Raises UnitError where there are none, as in
    txt2img."""
    if not any(map(is_input, unit.images)):
        return unit
    given: dict[int, Image.Image] = {id(image): image for image in getattr(p, "init_images", None) or []}
    pictures = [image for image in given.values() if isinstance(image, Image.Image)]
    if not pictures:
        raise UnitError(
            "images", "the picture of img2img", "a picture, embeds or a folder, since this job redraws no picture",
            'the reference "img2img picture" is used, expected a job of img2img with a picture: remove it here, or '
            "generate in img2img",
        )  # fmt: skip
    images: list[Reference] = []
    for one in unit.images:
        images += [replace(one, image=picture) for picture in pictures] if is_input(one) else [one]
    if len(images) > MAX_IMAGES:
        raise UnitError("images", f"{len(images)} images", f"at most {MAX_IMAGES}, those of img2img counted")
    return replace(unit, images=tuple(images))
