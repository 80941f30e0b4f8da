"""What was asked for: a unit, its fields and names, presets, and the weight over layers and steps. Needs no torch."""

from .fields import MAX_IMAGES, WEIGHT_RANGE, Reference
from .names import Named, checked_name
from .schema import schema
from .unit import (
    COMBINES,
    DISTRIBUTIONS,
    FACE,
    FIELD_NAMES,
    FIELDS,
    FITS,
    LAYERS,
    PASSES,
    PICTURES,
    PREPROCESS,
    REGION,
    REGIONS,
    SCALINGS,
    SCRIPTS,
    Unit,
    parse_units,
)

__all__ = [
    "COMBINES",
    "DISTRIBUTIONS",
    "FACE",
    "FIELDS",
    "FIELD_NAMES",
    "FITS",
    "LAYERS",
    "MAX_IMAGES",
    "PASSES",
    "PICTURES",
    "PREPROCESS",
    "REGION",
    "REGIONS",
    "SCALINGS",
    "SCRIPTS",
    "WEIGHT_RANGE",
    "Named",
    "Reference",
    "Unit",
    "checked_name",
    "parse_units",
    "schema",
]
