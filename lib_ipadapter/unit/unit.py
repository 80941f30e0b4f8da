"""Unit: one image prompt as the user asked for it, frozen, validated once.

``FIELDS`` is the one table of what a unit has. The API's JSON, the panel's order, the infotext, the
schema and the XYZ axes are read off it; a new field is a new row here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import IPAdapterError, UnitError
from . import crops, weights
from .fields import WEIGHT_RANGE, Field, Reference
from .names import Named

FITS = crops.FITS
COMBINES = ("concat", "average", "norm average", "add", "subtract")
SCALINGS = ("V only", "K+V", "K+V with C penalty", "K+mean(V) with C penalty")
PASSES = ("both", "first", "hires")
REGIONS = ("mask", "inpaint")
DISTRIBUTIONS = ("together", "one per picture")
LOOK, FINE, WHERE, FOLLOW = "What counts", "Layers and steps", "Region", "In other scripts"


FIELDS: tuple[Field, ...] = (
    Field("enabled", "bool", True, "Enable", "Whether this unit acts."),
    Field(
        "images", "images", (), "Reference images", "The pictures that prompt the model, each with a weight."
    ),
    Field("model", "string", "", "Model", "Adapter file, with or without extension, as model_list lists it."),
    Field("weight", "number", 1.0, "Weight", "λ: how strongly the image prompt acts.", *WEIGHT_RANGE),
    Field("start", "number", 0.0, "Start", "Fraction of the sampling at which it begins to act.", 0.0, 1.0),
    Field("end", "number", 1.0, "End", "Fraction of the sampling at which it stops acting.", 0.0, 1.0),
    Field(
        "fit",
        "choice",
        "crop",
        "Fit",
        "How a picture that is not square meets the encoder's square.",
        choices=FITS,
    ),
    Field(
        "combine",
        "choice",
        "concat",
        "Combine",
        "Several images: their tokens side by side, or those of the mean, sum or difference of their features.",
        choices=COMBINES,
    ),
    Field("distribute", "choice", "together", "References", "All of them in each picture, or in turn: the first in the "
          "job's first picture, the second in its second, and so on.", choices=DISTRIBUTIONS),
    Field("position", "choice", "center", "Crop position", "Where the square of fit crop lies in a longer picture.",
          choices=crops.POSITIONS, group=LOOK),
    Field("box", "text", "", "Crop box",
          'Of each reference only this counts: "left, top, right, bottom", 0 to 1; or drag it on a thumbnail.',
          spelling=crops.parse_boxes, form=crops.BOX_EXPECTED, group=LOOK),
    Field("sharpen", "number", 0.0, "Sharpen", "Of what the encoder sees.", 0.0, 1.0, group=LOOK),
    Field("noise", "number", 0.0, "Noise",
          "How far the negative references, or else the references, fade into noise on the unconditional side.",
          0.0, 1.0, group=LOOK),
    Field("negative", "images", (), "Negative references", "What the picture should not look like.", group=LOOK),
    Field("focus", "image", None, "Reference mask", "Which part of the reference counts: white does, black does not.",
          group=LOOK),
    Field("weight_type", "choice", "linear", "Weight type", "How the weight is spread over the UNet's layers.",
          choices=weights.TYPES, group=FINE),
    Field("composition", "number", 1.0, "Composition weight",
          "Of the types that tell style and composition apart: the weight of the other side.", *WEIGHT_RANGE, group=FINE),
    Field("layers", "text", "", "Weight per layer", 'Factors by layer, such as "0:1, 3-5:0.5"; others do not act.',
          spelling=weights.parse_layers, form=weights.LAYERS_EXPECTED, group=FINE),
    Field("curve", "text", "", "Weight over steps", 'Factors by fraction of the sampling, such as "0:0, 0.3:1".',
          spelling=weights.parse_curve, form=weights.CURVE_EXPECTED, group=FINE),
    Field("interpolation", "choice", "linear", "Between points", "From point to point evenly, or in steps.",
          choices=weights.INTERPOLATIONS, group=FINE),
    Field("passes", "choice", "both", "Passes", "The pass that it acts in, where there is hires fix.",
          choices=PASSES, group=FINE),
    Field("hires_factor", "number", 1.0, "Hires factor", "Factor of the weight in the hires pass.", 0.0, 5.0, group=FINE),
    Field("scaling", "choice", "V only", "Scaling", "What the weight scales: values, or keys too.", choices=SCALINGS,
          group=FINE),
    Field("maps", "bool", False, "Show where it acts", "Maps of where each reference acted, beside the pictures.",
          group=FINE, told=False),
    Field("mask", "image", None, "Mask", "Where in the picture it acts: white acts, black does not.", group=WHERE),
    Field("region", "choice", "mask", "Region", "The mask above (everywhere without one), or what inpainting redraws.",
          choices=REGIONS, group=WHERE),
    Field("invert", "bool", False, "Invert", "It acts where the region is not.", group=WHERE),
    Field("feather", "number", 0.0, "Feather", "Blur of the mask's edge, in pixels of the picture.", 0.0, 256.0,
          step=1, group=WHERE),
    Field("in_detailer", "bool", True, "In detailers",
          "It acts in the details that ADetailer draws anew, if ADetailer is told to use ip_adapter.", group=FOLLOW),
    Field("in_upscale", "bool", True, "In upscaling", "It acts in the tiles of SD upscale and Ultimate SD upscale.",
          group=FOLLOW),
    Field("in_loopback", "bool", True, "In loopback", "It acts in the passes of Loopback after the first.", group=FOLLOW),
)  # fmt: skip
FIELD_NAMES = tuple(field.name for field in FIELDS)
PICTURES = tuple(field.name for field in FIELDS if field.kind in ("image", "images"))


@dataclass(frozen=True)
class Unit:
    """One image prompt. Fields as in FIELDS; built by ``parse``, which is the only place of checks."""

    enabled: bool = True
    images: tuple[Reference, ...] = ()
    model: str = ""
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    fit: str = "crop"
    combine: str = "concat"
    distribute: str = "together"
    position: str = "center"
    box: str = ""
    sharpen: float = 0.0
    noise: float = 0.0
    negative: tuple[Reference, ...] = ()
    focus: Any = None
    weight_type: str = "linear"
    composition: float = 1.0
    layers: str = ""
    curve: str = ""
    interpolation: str = "linear"
    passes: str = "both"
    hires_factor: float = 1.0
    scaling: str = "V only"
    maps: bool = False
    mask: Any = None
    region: str = "mask"
    invert: bool = False
    feather: float = 0.0
    in_detailer: bool = True
    in_upscale: bool = True
    in_loopback: bool = True

    @classmethod
    def parse(cls, value: Unit | Mapping[str, Any]) -> Unit:
        """A unit from a JSON object or from the panel's values. Raises UnitError."""
        if isinstance(value, Unit):
            return value
        if not isinstance(value, Mapping):
            raise UnitError("unit", value, "a JSON object")
        unknown = [name for name in value if name not in FIELD_NAMES]
        if unknown:
            raise UnitError(str(unknown[0]), value[unknown[0]], f"one of the fields {', '.join(FIELD_NAMES)}")
        unit = cls(**{field.name: field.parse(value[field.name]) for field in FIELDS if field.name in value})
        if unit.enabled:
            unit._check()
        return unit

    def _check(self) -> None:
        """What only an enabled unit must satisfy."""
        if not self.model:
            raise UnitError("model", self.model, "the name of an adapter file, as model_list lists it")
        if not self.images:
            raise UnitError("images", [], "at least one reference image")
        self.check_weights()
        if any(reference.weight != 1 for reference in self.negative):
            raise UnitError("negative", "a weight", "pictures without weights: their mean counts")
        if any(isinstance(reference.image, Named) for reference in self.negative):
            raise UnitError("negative", "embeds or a folder", "pictures")
        if self.mask is not None and self.region == "inpaint":
            raise UnitError("mask", "a picture", 'null, since region is inpaint; or region "mask"')
        if self.invert and self.mask is None and self.region == "mask":
            raise UnitError("invert", True, "false, since there is no mask to invert")
        if self.distribute == "together" and not any(isinstance(r.image, Named) for r in self.images):
            self.check_images()

    def check_images(self) -> None:
        """What the images must satisfy together; of those that are Named, once they are there. Raises UnitError."""
        crops.boxes(self.box, len(self.images))
        if self.combine == "subtract" and len(self.images) < 2:
            raise UnitError("images", "1 image", "at least two, since combine is subtract")
        if self.combine in ("average", "norm average") and math.isclose(
            sum(r.weight for r in self.images), 0.0, abs_tol=1e-6
        ):
            raise UnitError(
                "images",
                [r.weight for r in self.images],
                f"weights whose sum is not 0, since combine is {self.combine}",
            )

    def check_weights(self) -> None:
        """What the fields of layers and steps must satisfy together. Raises UnitError."""
        if self.start > self.end:
            raise UnitError("start", self.start, f"a fraction not above end ({self.end:g})")
        if self.layers and self.weight_type != "linear":
            raise UnitError(
                "layers", self.layers, f'"", since weight_type is {self.weight_type}; or weight_type linear'
            )

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, without the pictures (for the infotext)."""
        return {
            f.name: getattr(self, f.name)
            for f in FIELDS
            if f.told and f.name not in PICTURES and getattr(self, f.name) != f.default
        }


def parse_units(values: Iterable[Any]) -> list[Unit]:
    """Units from JSON objects; an error names the unit by its place."""
    units = []
    for index, value in enumerate(values):
        try:
            units.append(Unit.parse(value))
        except IPAdapterError as error:
            raise error.in_unit(index) from None
    return units


def schema() -> dict[str, Any]:
    """JSON schema of a unit, as ``GET /ip-adapter/schema`` answers."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "IP-Adapter unit",
        "type": "object",
        "properties": {
            **{field.name: field.schema() for field in FIELDS},
            "preset": {
                "type": "string",
                "title": "Preset",
                "description": "Fields that are not given are this preset's.",
            },
        },
        "additionalProperties": False,
    }
