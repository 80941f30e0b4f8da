"""One field of a unit: what it may hold, and how a value becomes one. Pictures are checked for their type only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnitError
from .names import KINDS, Named, image_schema

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
            '{"image": ..., "weight": number}, with "embeds" or "folder" and a name in the place of "image" if wanted',
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
            "images": {"type": "array", "maxItems": MAX_IMAGES, "items": image_schema(WEIGHT_RANGE)},
        }
        default = list(self.default) if self.kind == "images" else self.default
        return {**kinds[self.kind], "default": default, "title": self.label, "description": self.help}


@dataclass(frozen=True)
class Reference:
    """One reference picture: base64, data URI, PIL image or array, not decoded yet, and its weight; or what is Named.

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
    key = next((kind for kind in KINDS if kind in item), "image")
    unknown = sorted(set(item) - {key, "weight"})
    if unknown or key not in item:
        raise UnitError(
            where, sorted(item), 'an object with "image" (or "embeds", or "folder") and, if wanted, "weight"'
        )
    weight = Field(f"{where}.weight", "number", 1.0, "", "", *WEIGHT_RANGE).parse(item.get("weight", 1.0))
    if key in KINDS:
        return Reference(_named(key, item[key], where), weight)
    return Reference(_picture(item["image"], f"{where}.image"), weight)


def _named(kind: str, name: Any, where: str) -> Named:
    if not isinstance(name, str) or not name.strip():
        raise UnitError(f"{where}.{kind}", name, "a name")
    return Named(kind, name.strip())


def _picture(value: Any, where: str) -> Any:
    """A picture of any type that images.load takes; text and emptiness are checked here."""
    if (isinstance(value, str) and value.strip()) or isinstance(value, (bytes, bytearray)):
        return value
    if value is None or isinstance(value, (str, bool, int, float, Sequence)):
        raise UnitError(where, value, "a base64 string or a data URI")
    return value
