"""Unit: one image prompt as the user asked for it, frozen, validated once.

``FIELDS`` is the one table of what a unit has. The API's JSON, the panel's order, the infotext, the
schema and the XYZ axes are read off it; a new field is a new row here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import weights
from .errors import IPAdapterError, UnitError

FITS = ("crop", "pad", "stretch")
COMBINES = ("concat", "average", "norm average", "add", "subtract")
SCALINGS = ("V only", "K+V", "K+V with C penalty", "K+mean(V) with C penalty")
PASSES = ("both", "first", "hires")
REGIONS = ("mask", "inpaint")
FINE, WHERE = "Layers and steps", "Region"
MAX_IMAGES = 64
WEIGHT_RANGE = (-1.0, 5.0)


@dataclass(frozen=True)
class Field:
    """One field of a unit: ``kind`` is bool, string, number, choice, text, image or images. A text has a ``spelling``: what
    brings a value into its normal form or raises UnitError, and ``form``, which says in words what it may be."""

    name: str
    kind: str
    default: Any
    label: str
    help: str
    minimum: float = -math.inf
    maximum: float = math.inf
    step: float = 0.01
    choices: tuple[str, ...] = ()
    spelling: Callable[[Any], str] | None = None
    form: str = ""
    group: str = ""  # what the panel folds away together
    told: bool = True  # in the infotext and the X/Y/Z plot; False for what does not change the picture

    @property
    def expected(self) -> str:
        """What a value of this field may be, in words."""
        return {
            "bool": "true or false",
            "string": "a string",
            "number": f"a number from {self.minimum:g} to {self.maximum:g}",
            "choice": f"one of {', '.join(self.choices)}",
            "text": self.form,
            "image": "null, or a picture as a base64 string or a data URI",
            "images": f"a list of 1 to {MAX_IMAGES} images, each a base64 string, a data URI or "
            '{"image": ..., "weight": number}',
        }[self.kind]

    def parse(self, value: Any) -> Any:
        """``value`` as this field keeps it. Raises UnitError."""
        if self.kind == "bool" and isinstance(value, bool):
            return value
        if self.kind == "string" and isinstance(value, str):
            return value.strip()
        if self.kind == "number":
            return self._number(value)
        if self.kind == "choice" and isinstance(value, str) and value in self.choices:
            return value
        if self.spelling is not None:
            return self.spelling(value)
        if self.kind == "images":
            return parse_images(value, self)
        if self.kind == "image":
            return None if value is None else _picture(value, self.name)
        raise UnitError(self.name, value, self.expected)

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UnitError(self.name, value, self.expected)
        if not self.minimum <= value <= self.maximum:  # false for NaN as well
            raise UnitError(self.name, value, self.expected)
        return float(value)

    def schema(self) -> dict[str, Any]:
        """JSON schema of this field."""
        kinds: dict[str, dict[str, Any]] = {
            "bool": {"type": "boolean"},
            "string": {"type": "string"},
            "number": {"type": "number", "minimum": self.minimum, "maximum": self.maximum},
            "choice": {"type": "string", "enum": list(self.choices)},
            "text": {"type": ["string", "object", "array"]},
            "image": {"type": ["string", "null"], "description": "base64 or a data URI"},
            "images": {"type": "array", "maxItems": MAX_IMAGES, "items": _IMAGE_SCHEMA},
        }
        default = list(self.default) if self.kind == "images" else self.default
        return {**kinds[self.kind], "default": default, "title": self.label, "description": self.help}


_IMAGE_SCHEMA = {
    "oneOf": [
        {"type": "string", "description": "base64 or a data URI"},
        {
            "type": "object",
            "properties": {
                "image": {"type": "string", "description": "base64 or a data URI"},
                "weight": {
                    "type": "number",
                    "minimum": WEIGHT_RANGE[0],
                    "maximum": WEIGHT_RANGE[1],
                    "default": 1.0,
                },
            },
            "required": ["image"],
            "additionalProperties": False,
        },
    ]
}

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
)  # fmt: skip
FIELD_NAMES = tuple(field.name for field in FIELDS)


@dataclass(frozen=True)
class Reference:
    """One reference picture: base64, data URI, PIL image or array, not decoded yet, and its weight.

    ``concat`` scales the values V' of this picture's tokens by the weight; ``average`` and ``norm
    average`` take the weighted mean of the features, so there only the proportion of the weights
    counts; ``add`` and ``subtract`` scale the features.
    """

    image: Any
    weight: float = 1.0


def parse_images(value: Any, field: Field) -> tuple[Reference, ...]:
    """A list of pictures as References. A single picture is taken as a list of one."""
    if value is None:
        return ()
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        value = [value]
    if len(value) > MAX_IMAGES:
        raise UnitError(field.name, f"{len(value)} images", field.expected)
    return tuple(_reference(item, f"{field.name}[{i}]") for i, item in enumerate(value))


def _reference(item: Any, where: str) -> Reference:
    if isinstance(item, Reference):
        return item
    if not isinstance(item, Mapping):
        return Reference(_picture(item, where))
    unknown = sorted(set(item) - {"image", "weight"})
    if unknown or "image" not in item:
        raise UnitError(where, sorted(item), 'an object with "image" and, if wanted, "weight"')
    weight = Field(f"{where}.weight", "number", 1.0, "", "", *WEIGHT_RANGE).parse(item.get("weight", 1.0))
    return Reference(_picture(item["image"], f"{where}.image"), weight)


def _picture(value: Any, where: str) -> Any:
    """A picture of any type that images.load takes; text and emptiness are checked here."""
    if (isinstance(value, str) and value.strip()) or isinstance(value, (bytes, bytearray)):
        return value
    if value is None or isinstance(value, (str, bool, int, float, Sequence)):
        raise UnitError(where, value, "a base64 string or a data URI")
    return value


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
        if self.mask is not None and self.region == "inpaint":
            raise UnitError("mask", "a picture", 'null, since region is inpaint; or region "mask"')
        if self.invert and self.mask is None and self.region == "mask":
            raise UnitError("invert", True, "false, since there is no mask to invert")
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
            if f.told and f.kind not in ("image", "images") and getattr(self, f.name) != f.default
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
