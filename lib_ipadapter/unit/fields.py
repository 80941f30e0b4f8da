"""Kinds of unit fields beside those of ``options``: reference pictures, one picture, and texts with a grammar.

Pictures are checked for their type only; ``pictures.images`` decodes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnitError
from ..options import Option, declare
from .names import INPUT, KINDS, Named

MAX_IMAGES = 64
WEIGHT_RANGE = (-1.0, 5.0)
_IMAGES_HINT = (
    f"a list of 1 to {MAX_IMAGES} images, each a base64 string, a data URI or "
    '{"image": ..., "weight": number, "mask": picture}, or with "embeds" or "folder" and a name, or "input": '
    '"img2img", instead of "image"'
)
_IMAGE_FORMS = {
    "image": "base64 or a data URI",
    "embeds": "name of saved embeds",
    "folder": "name of a folder of pictures",
    "input": f'"{INPUT}": the picture of img2img',
}


@dataclass(frozen=True)
class Reference:
    """One reference, its weight and its mask: base64, data URI, PIL image or array, not decoded yet; or a Named. mask:
    the white parts of the picture are used; None for the unit's own ``focus``.

    ``concat`` scales the values V' of this picture's tokens by the weight; ``average`` and ``norm average`` take the
    weighted mean of the features, so only the proportions of the weights count; ``add`` and ``subtract`` scale the
    features.
    """

    image: Any
    weight: float = 1.0
    mask: Any = None


# declarations


def text(help: str, normalize: Callable[[Any], str], hint: str, **more: Any) -> Any:
    """A field of text with a grammar: ``normalize`` gives its normal form or raises UnitError, ``hint`` describes
    it."""
    json = {"type": ["string", "object", "array"]}
    return declare("text", "", help, normalize=lambda value, _: normalize(value), hint=hint, json=json, **more)


def picture(help: str, **more: Any) -> Any:
    """A field of one picture, or None."""
    hint = "null, or a picture as a base64 string or a data URI"
    json = {"type": ["string", "null"], "description": "base64 or a data URI"}
    return declare("image", None, help, normalize=_parse_image, hint=hint, json=json, **more)


def references(help: str, **more: Any) -> Any:
    """A field of references, a tuple of Reference."""
    json = {"type": "array", "maxItems": MAX_IMAGES, "items": image_schema()}
    return declare("images", (), help, normalize=parse_images, hint=_IMAGES_HINT, json=json, **more)


# values


def parse_images(value: Any, field: Option) -> tuple[Reference, ...]:
    """A list of pictures as References; a single picture is taken as a list of one. Raises UnitError."""
    if value is None:
        return ()
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        value = [value]
    if len(value) > MAX_IMAGES:
        raise UnitError(field.name, f"{len(value)} images", field.expected)
    return tuple(_reference(item, f"{field.name}[{i}]") for i, item in enumerate(value))


def parse_weight(value: Any, where: str) -> float:
    """The weight of one reference; ``where`` names it in the error. Raises UnitError."""
    low, high = WEIGHT_RANGE
    weight: float = Option("number", 1.0, "", low, high, name=where, error=UnitError).parse(value)
    return weight


def _reference(item: Any, where: str) -> Reference:
    if isinstance(item, Reference):
        return item
    if not isinstance(item, Mapping):
        return Reference(_picture(item, where))
    key = next((kind for kind in KINDS if kind in item), "image")
    unknown = sorted(set(item) - {key, "weight", "mask"})
    if unknown or key not in item:
        raise UnitError(
            where,
            sorted(item),
            'an object with "image" (or "embeds", "folder" or "input") and, if wanted, "weight" and "mask"',
        )
    weight = parse_weight(item.get("weight", 1.0), f"{where}.weight")
    mask = None if item.get("mask") is None else _picture(item["mask"], f"{where}.mask")
    if key not in KINDS:
        return Reference(_picture(item["image"], f"{where}.image"), weight, mask)
    if mask is not None and key == "embeds":
        raise UnitError(f"{where}.mask", "a picture", "null, since saved embeds hold no picture that it could cover")
    return Reference(_named(key, item[key], where), weight, mask)


def _named(kind: str, name: Any, where: str) -> Named:
    if not isinstance(name, str) or not name.strip():
        raise UnitError(f"{where}.{kind}", name, "a name")
    if kind == "input" and name != INPUT:
        raise UnitError(f"{where}.{kind}", name, f'"{INPUT}", the picture of img2img')
    return Named(kind, name.strip())


def _parse_image(value: Any, field: Option) -> Any:
    return None if value is None else _picture(value, field.name)


def _picture(value: Any, where: str) -> Any:
    """A picture of any type that images.load takes. Raises UnitError for other types and for empty text."""
    if (isinstance(value, str) and value.strip()) or isinstance(value, (bytes, bytearray)):
        return value
    if value is None or isinstance(value, (str, bool, int, float, Sequence)):
        raise UnitError(where, value, "a base64 string or a data URI")
    return value


def _masked(kind: str) -> dict[str, Any]:
    says = "base64 or a data URI: the white parts of the reference are used"
    return {} if kind == "embeds" else {"mask": {"type": ["string", "null"], "description": says}}


def image_schema() -> dict[str, Any]:
    """JSON schema of one entry of ``images``."""
    low, high = WEIGHT_RANGE
    weight = {"type": "number", "minimum": low, "maximum": high, "default": 1.0}
    objects = [
        {
            "type": "object",
            "properties": {key: {"type": "string", "description": says}, "weight": weight, **_masked(key)},
            "required": [key],
            "additionalProperties": False,
        }
        for key, says in _IMAGE_FORMS.items()
    ]
    return {"oneOf": [{"type": "string", "description": _IMAGE_FORMS["image"]}, *objects]}
