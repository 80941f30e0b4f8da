"""What the fields of a unit must satisfy together."""

from __future__ import annotations

from typing import Any

from ..errors import UnitError
from . import crops
from .fields import Reference
from .names import Named


class Checks:
    """The checks of ``Unit``, which has these fields."""

    model: str
    images: tuple[Reference, ...]
    negative: tuple[Reference, ...]
    start: float
    end: float
    combine: str
    distribute: str
    box: str
    weight_type: str
    layers: str
    mask: Any
    region: str
    invert: bool
    zero_tokens: float
    pose: tuple[Reference, ...]
    pose_from: str
    pose_start: float
    pose_end: float

    def _check(self) -> None:
        """What only an enabled unit must satisfy."""
        if not self.model:
            raise UnitError(
                "model", self.model, "the name of an adapter file, as model_list lists it",
                "no model is chosen: choose one under Model, or switch the unit off",
            )  # fmt: skip
        if not self.images:
            raise UnitError(
                "images", [], "at least one reference image",
                "there is no image, expected at least one reference image: add one, or switch the unit off",
            )  # fmt: skip
        self.check_weights()
        if any(reference.weight != 1 for reference in self.negative):
            raise UnitError("negative", "a weight", "pictures without weights: their mean counts")
        if any(isinstance(reference.image, Named) for reference in self.negative):
            raise UnitError("negative", "embeds or a folder", "pictures")
        if any(reference.mask is not None for reference in self.negative):
            raise UnitError("negative", "a mask", "pictures without masks: they count whole")
        if self.mask is not None and self.region != "mask":
            raise UnitError(
                "mask", "a picture", f'null, since region is {self.region}; or region "mask"',
                f"there is a mask, but region is {self.region}: take the mask away, or set region to mask",
            )  # fmt: skip
        if self.invert and self.mask is None and self.region == "mask":
            raise UnitError(
                "invert", True, "false, since there is no mask to invert",
                "Invert is on, expected off, since there is no mask to invert: paint one under Region, or switch it "
                "off",
            )  # fmt: skip
        if self.zero_tokens % 1:
            raise UnitError("zero_tokens", self.zero_tokens, "a whole number")
        self._check_pose()
        if self.distribute != "one per picture" and not any(isinstance(r.image, Named) for r in self.images):
            self.check_images()

    def _check_pose(self) -> None:
        if len(self.pose) > 1 or any(isinstance(r.image, Named) or r.weight != 1 or r.mask for r in self.pose):
            raise UnitError("pose", f"{len(self.pose)} entries", "one picture, without a weight or a mask")
        if self.pose and self.pose_from != "reference":
            raise UnitError("pose", "a picture", f'none, since pose_from is {self.pose_from}; or pose_from "reference"')
        if self.pose_start > self.pose_end:
            raise UnitError(
                "pose_start", self.pose_start, f"a fraction not above pose_end ({self.pose_end:g})",
                f"Pose start ({self.pose_start:g}) is after Pose end, expected a fraction not above pose_end "
                f"({self.pose_end:g})",
            )  # fmt: skip

    def check_images(self) -> None:
        """What the images must satisfy together; of those that are Named, once they are there. Raises UnitError."""
        crops.boxes(self.box, len(self.images))
        if self.combine == "subtract" and len(self.images) < 2:
            raise UnitError(
                "images", "1 image", "at least two, since combine is subtract",
                "Combine is subtract, which takes the other images from the first, and there is 1 image, expected at "
                "least two: add one, or choose concat",
            )  # fmt: skip
        weights = [r.weight for r in self.images]
        # The mean is divided by the sum: nearly 0, it is a feature a hundred times too long.
        if self.combine in ("average", "norm average") and abs(sum(weights)) <= 0.01 * sum(map(abs, weights)):
            given = ", ".join(f"{weight:g}" for weight in weights)
            raise UnitError(
                "images", weights, f"weights whose sum is not near 0, since combine is {self.combine}",
                f"Combine is {self.combine}, and the images' weights are {given}, expected weights whose sum is not "
                "near 0: change one, or choose concat",
            )  # fmt: skip

    def check_weights(self) -> None:
        """What the fields of layers and steps must satisfy together. Raises UnitError."""
        if self.start > self.end:
            raise UnitError(
                "start", self.start, f"a fraction not above end ({self.end:g})",
                f"Start ({self.start:g}) is after End, expected a fraction not above end ({self.end:g})",
            )  # fmt: skip
        if self.layers and self.weight_type != "linear":
            raise UnitError(
                "layers", self.layers, f'"", since weight_type is {self.weight_type}; or weight_type linear',
                f'Weight per layer works only with linear, expected "", since weight_type is {self.weight_type}: clear '
                "it, or choose linear",
            )  # fmt: skip
