"""What was asked for: a unit, its fields and names, presets, and the weight over layers and steps. Needs no torch."""

from .fields import MAX_IMAGES, WEIGHT_RANGE, Field, Reference
from .names import Named, checked_name
from .unit import (
    COMBINES,
    DISTRIBUTIONS,
    FIELD_NAMES,
    FIELDS,
    FINE,
    FITS,
    FOLLOW,
    LOOK,
    PASSES,
    PICTURES,
    REGIONS,
    SCALINGS,
    WHERE,
    Unit,
    parse_units,
    schema,
)

__all__ = [
    "COMBINES",
    "DISTRIBUTIONS",
    "FIELDS",
    "FIELD_NAMES",
    "FINE",
    "FITS",
    "FOLLOW",
    "LOOK",
    "MAX_IMAGES",
    "PASSES",
    "PICTURES",
    "REGIONS",
    "SCALINGS",
    "WEIGHT_RANGE",
    "WHERE",
    "Field",
    "Named",
    "Reference",
    "Unit",
    "checked_name",
    "parse_units",
    "schema",
]
