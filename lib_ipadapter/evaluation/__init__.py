"""Measuring adapters: CLIP-I, CLIP-T and measures of one's own, with confidence intervals, grid and curve."""

from .items import Item, read_items
from .metric import Clip, Metric
from .run import Options, evaluate
from .stats import Estimate, bootstrap
from .table import Results, Row

__all__ = [
    "Clip",
    "Estimate",
    "Item",
    "Metric",
    "Options",
    "Results",
    "Row",
    "bootstrap",
    "evaluate",
    "read_items",
]
