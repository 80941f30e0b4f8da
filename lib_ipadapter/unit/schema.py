"""The JSON schema of a unit."""

from __future__ import annotations

from typing import Any

from .unit import FIELDS


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
