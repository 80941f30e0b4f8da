"""Names that people give to what is kept in a folder, as file names of any system; and what stands for such a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import UnitError

KINDS = ("embeds", "folder")  # what may stand in a picture's place by its name
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|.][^\x00-\x1f\x7f/\\:*?\"<>|]{0,79}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Named:
    """References by name: ``kind`` is one of KINDS."""

    kind: str
    name: str


def checked_name(field: str, name: Any) -> str:
    """``name``, which leads to no other folder. Raises UnitError."""
    usable = isinstance(name, str) and _NAME.fullmatch(name) and name == name.rstrip(" .")
    if not usable or name.casefold() in _RESERVED:
        raise UnitError(field, name, 'a name of 1 to 80 characters without any of / \\ : * ? " < > |')
    return str(name)


def image_schema(weights: tuple[float, float]) -> dict[str, Any]:
    """JSON schema of one entry of ``images``, whose weight is in this range."""
    lowest, highest = weights
    weight = {"type": "number", "minimum": lowest, "maximum": highest, "default": 1.0}
    forms = {
        "image": "base64 or a data URI",
        "embeds": "name of saved embeds",
        "folder": "name of a folder of pictures",
    }
    objects = [
        {
            "type": "object",
            "properties": {key: {"type": "string", "description": says}, "weight": weight},
            "required": [key],
            "additionalProperties": False,
        }
        for key, says in forms.items()
    ]
    return {"oneOf": [{"type": "string", "description": forms["image"]}, *objects]}
