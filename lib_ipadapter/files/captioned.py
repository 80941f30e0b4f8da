"""Pictures with captions in a folder, for training and evaluation alike: .txt files beside them, or metadata.jsonl.

A picture may have a second one for the image encoder, the reference: ``NAME.ref.png`` beside ``NAME.png``, or the field
``reference`` of metadata.jsonl. Else one picture is both. Texts are UTF-8, with or without a BOM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError, FileError, printable
from ..pictures.images import SUFFIXES
from .disk import open_regular

METADATA = "metadata.jsonl"
LONGEST = 2**20  # bytes of a caption
_OWN = ("file_name", "text", "caption", "reference")


@dataclass(frozen=True)
class Entry:
    """Paths relative to the folder. caption: text, or None when it is in the file ``text``; fields: the other fields
    of metadata.jsonl, as text; line: its number there."""

    picture: str
    reference: str
    caption: str | None
    text: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    line: int = 0


def entries(root: Path) -> list[Entry]:
    """Of metadata.jsonl in its order, else of the pictures below the folder by name. Raises DataError for a bad
    line; a folder without pictures has no entries."""
    return from_metadata(root) if os.path.isfile(root / METADATA) else beside(root)


def beside(root: Path) -> list[Entry]:
    """The pictures below a folder, each with the .txt of its name."""
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    others = {p.with_suffix("").with_suffix(""): p for p in found if _is_reference(p)}
    pictures = [p for p in found if not _is_reference(p)]
    return [_beside(root, p, others.get(p.with_suffix(""), p)) for p in pictures]


def _is_reference(picture: Path) -> bool:
    return picture.stem.lower().endswith(".ref")


def _beside(root: Path, picture: Path, other: Path) -> Entry:
    name = picture.relative_to(root).as_posix()
    return Entry(name, other.relative_to(root).as_posix(), None, str(PurePosixPath(name).with_suffix(".txt")))


def caption(root: Path, entry: Entry) -> str:
    """The caption, stripped; "" without one. Raises DataError for a file that cannot be read."""
    if entry.caption is not None:
        return entry.caption
    path = root / entry.text
    if not os.path.lexists(path):
        return ""
    try:
        with open_regular(path, "a text file") as file:
            return caption_in(file.read(LONGEST + 1))
    except (OSError, ValueError, FileError) as error:
        raise DataError(path, f"this caption cannot be read ({error}); expected text in UTF-8") from None


def caption_in(content: bytes) -> str:
    """The caption in a text file's bytes. Raises ValueError."""
    if len(content) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} bytes")
    return content.decode("utf-8-sig").strip()


def from_metadata(root: Path) -> list[Entry]:
    """An entry for each line of metadata.jsonl. Raises DataError, which names the line."""
    path = root / METADATA
    try:
        # Not splitlines: a caption may hold other characters that end lines, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error}); expected JSON lines in UTF-8") from None
    found = [_line(root, path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(path, "it is empty; expected a line for each picture")
    return found


def _line(root: Path, path: Path, number: int, line: str) -> Entry:
    try:
        row: Any = json.loads(line)
        name = row["file_name"]
        reference, text = row.get("reference") or name, caption_of(row, "text", "caption")
        good = isinstance(name, str) and isinstance(reference, str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise DataError(path, f"line {number}: expected an object with file_name and text, got {line[:80]!r}")
    for part in (name, reference):
        if not part.strip("./") or "\0" in part or printable(part) != part:
            raise DataError(path, f"line {number}: {part!r} is no file's name; give a path below {root.name}")
        if not is_inside(part):
            raise DataError(path, f"line {number}: {part!r} leaves the folder; give a path below {root.name}")
    fields = {printable(key): printable(str(value)) for key, value in row.items() if key not in _OWN}
    return Entry(name, reference, text, "", fields, number)


def is_inside(name: str) -> bool:
    """Whether a path that a file names stays below the file's folder, on any system."""
    pure = PurePosixPath(name)
    return not (pure.is_absolute() or ".." in pure.parts or ":" in name or "\\" in name)


def caption_of(row: Any, *names: str) -> str:
    """The first of these fields of a JSON object that is there and not null, else "". Raises TypeError."""
    found = next((row[name] for name in names if row.get(name) is not None), "")
    if not isinstance(found, str):
        raise TypeError(f"a caption of type {type(found).__name__}, expected text")
    return printable(found).strip()
