"""The pictures on the disk: OUT/pictures/METHOD/WEIGHT/KEY-I.png, each with the settings that made it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..atomic import replacing
from ..errors import FileError

CHUNK = "evaluation"  # of the PNG
WITHOUT = "none"  # folder of a method that has no λ


def weight_text(weight: float | None) -> str:
    """A λ as folders and tables name it."""
    return WITHOUT if weight is None else f"{weight:g}"


class Pictures:
    """The store below ``out``."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "pictures"

    def path(self, method: str, weight: float | None, key: str, index: int) -> Path:
        """Where the ``index``-th picture of a reference is."""
        return self.folder / method / weight_text(weight) / f"{key}-{index}.png"

    def has(self, path: Path, settings: Mapping[str, Any]) -> bool:
        """Whether the picture is there, whole, and made with these settings. Raises FileError for others."""
        if not os.path.isfile(path):
            return False
        try:
            with Image.open(path) as picture:
                text = picture.info.get(CHUNK)
                picture.verify()
        except (OSError, SyntaxError, ValueError):
            return False  # cut short: it is drawn again
        found = _told(text)
        if found.get("hash") != settings_hash(settings):
            raise FileError(
                path, f"in {self.folder} was drawn with other settings: "
                      f"{_changes(found.get('settings', {}), settings)}. "
                "Choose another --out, or delete that folder",
            )  # fmt: skip
        return True

    def save(self, path: Path, picture: Image.Image, settings: Mapping[str, Any]) -> None:
        """Writes a picture; never a part of one under its name. Raises FileError."""
        info = PngInfo()
        info.add_text(CHUNK, json.dumps({"hash": settings_hash(settings), "settings": settings}, sort_keys=True))
        with replacing(path) as part:
            picture.save(part, "PNG", pnginfo=info)


def _told(text: Any) -> dict[str, Any]:
    """What a picture says of itself; {} where it is none of ours."""
    try:
        found = json.loads(text) if text else {}
    except (TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("settings", {}), dict):
        return {}
    return found


def settings_hash(settings: Mapping[str, Any]) -> str:
    """16 hex digits, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings differ, with their values."""
    now = json.loads(json.dumps(now))  # tuples to lists, as they come back
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [f"{name} was {_short(before.get(name))}, is now {_short(now.get(name))}" for name in sorted(names)]
    return "; ".join(told) or "they are not in the file"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
