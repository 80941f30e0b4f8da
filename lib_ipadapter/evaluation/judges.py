"""Which weight files can measure: a CLIP with both towers in open_clip's layout."""

from __future__ import annotations

import json
from pathlib import Path

from ..cache import LRU
from ..encoders.files import opened
from ..encoders.recognise import Recognised
from ..encoders.source import identity
from ..errors import FileError, IPAdapterError
from ..files.disk import read_text
from .metric import QUICK, VOCABULARY

_TEXTS = ("token_embedding.weight", "text.token_embedding.weight")
_PREFIXES = ("", "module.", "state_dict.")
_known: LRU[bool] = LRU(lambda: 256)


def arch_of(entry: Recognised) -> str | None:
    """What ``--clip-arch`` has to be for the file of an encoder: "" where the config beside it says it, None where the
    file cannot measure."""
    if entry.spec is None or entry.spec.timm[0] or not _has_text(entry.path):
        return None
    if entry.custom:
        return "" if _config_has_text(entry.path.with_suffix(".json")) else None
    plain = entry.spec.name.removesuffix(QUICK)
    return f"{plain}{QUICK}" if entry.spec.quick_gelu else plain


def _has_text(path: Path) -> bool:
    def look() -> bool:
        with opened(path) as (shapes, _read):
            found = [shapes.get(f"{prefix}{key}") for prefix in _PREFIXES for key in _TEXTS]
        return any(shape is not None and shape[0] == VOCABULARY for shape in found)

    try:
        return _known.get(identity(path), look)
    except (IPAdapterError, OSError):
        return False


def _config_has_text(path: Path) -> bool:
    try:
        content = json.loads(read_text(path))
        return "text_cfg" in {**content, **content.get("model_cfg", {})}
    except (FileError, ValueError, TypeError, AttributeError, RecursionError):
        return False
