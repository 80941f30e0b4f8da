"""Presets: a unit's settings without its pictures, as FOLDER/NAME.json with the fields that differ from the
defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import remove, replacing
from ..errors import FileError, UnitError
from ..options import canonical, checked
from .names import checked_name, in_text
from .unit import FIELDS, PICTURES

_LEFT_OUT = {"enabled", *PICTURES}
KEPT = {field.name: field for field in FIELDS if field.name not in _LEFT_OUT}
_OPTIONS = tuple(KEPT.values())
_MAX_BYTES = 2**16


class Presets:
    """The presets of a folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """In alphabetical order."""
        files = self.folder.glob("*.json") if self.folder.is_dir() else ()
        return in_text(file.stem for file in files if not file.name.startswith(".") and file.is_file())

    def load(self, name: Any) -> dict[str, Any]:
        """The preset's fields, checked. Raises UnitError for an unknown name, FileError for a broken file."""
        path = self._path(name)
        if not path.is_file():
            known = ", ".join(self.names()[:20]) or "none is saved yet"
            raise UnitError("preset", name, f"the name of a preset: {known}")
        try:
            with path.open("rb") as file:
                content = json.loads(file.read(_MAX_BYTES).decode("utf-8-sig"))  # some editors put a mark in front
        except (OSError, ValueError, RecursionError) as error:
            raise FileError(path, f"the preset cannot be read ({error}); save it again") from None
        if not isinstance(content, dict):
            raise FileError(path, "the preset is no JSON object of a unit's fields; save it again")
        try:
            return checked(_OPTIONS, content)
        except UnitError as error:
            raise FileError(path, f"the preset's {error}; save it again") from None

    def save(self, name: Any, unit: Mapping[str, Any]) -> dict[str, Any]:
        """Saves a unit's fields under a name and returns those that were written. Never leaves a part of a file.
        Raises UnitError, FileError."""
        path = self._path(name)
        given = canonical(FIELDS, unit)
        fields = checked(_OPTIONS, {key: value for key, value in given.items() if key not in _LEFT_OUT})
        kept = {key: value for key, value in fields.items() if value != KEPT[key].default}
        with replacing(path) as part:
            part.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return kept

    def remove(self, name: Any) -> None:
        """Deletes a preset. Raises UnitError for an unknown name, FileError where the file is in use."""
        path = self._path(name)
        if not path.is_file():
            raise UnitError("preset", name, "the name of a preset")
        remove(path)

    def over(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        """A unit object by its fields' names; those that it does not give are its ``preset``'s. Raises UnitError,
        FileError."""
        given = canonical(FIELDS, {key: value for key, value in unit.items() if key != "preset"})
        name = unit.get("preset")
        return given if name is None or name == "" else {**self.load(name), **given}

    def _path(self, name: Any) -> Path:
        return self.folder / f"{checked_name('preset', name)}.json"
