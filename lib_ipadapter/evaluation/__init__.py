"""Measuring adapters: CLIP-I, CLIP-T and measures of one's own, with confidence intervals, grid and curve."""

from .items import Item, read_items
from .metric import Clip, Metric
from .options import Options
from .run import evaluate
from .stats import Estimate, difference, estimate
from .table import Results, Row

__all__ = [
    "Clip",
    "Estimate",
    "Item",
    "Metric",
    "Options",
    "Results",
    "Row",
    "difference",
    "estimate",
    "evaluate",
    "read_items",
]
