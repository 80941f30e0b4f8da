"""The references: pictures with captions, of a folder or in COCO's layout."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ConfigError, FileError, ImageError
from ..files import captioned
from ..files.captioned import METADATA
from ..files.disk import read_text
from ..pictures import images
from ..pictures.images import SUFFIXES
from ..unit.names import is_device
from .dreambench import is_dreambench, read_dreambench

_Row = tuple[Path, str, dict[str, str]]
_LONGEST = 160  # bytes of a key; with its number and ending it is a file's name
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Item:
    """One reference. key: names its pictures, unique; caption: what CLIP-T compares with; picture: whatever
    ``images.load`` takes; fields: further texts of metadata.jsonl."""

    key: str
    caption: str
    picture: Any
    fields: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Image.Image:
        """The picture, RGB. Raises ImageError that names it."""
        try:
            return images.load(self.picture)
        except ImageError as error:
            raise ImageError(f"reference {self.key}: {error}; repair it or take it out") from None

    def fill(self, template: str) -> str:
        """``template`` with {caption} and {any field} filled in. Raises ConfigError for an unknown one."""

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name != "caption" and name not in self.fields:
                raise ConfigError(
                    "prompt", match[0], f"{{caption}} or a field of {METADATA}; reference {self.key} has "
                    f"{', '.join(self.fields) or 'none'}",
                )  # fmt: skip
            return self.caption if name == "caption" else self.fields[name]

        return _PLACEHOLDER.sub(value, template)


def read_items(folder: Path | str, coco: Path | str | None = None, limit: int | None = None) -> list[Item]:
    """The references in ``folder``, sorted by name, the first ``limit``.

    Captions: ``coco`` (annotations of COCO: the first of each picture), else as a training reads them
    (files/captioned.py). Raises FileError, ConfigError.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise FileError(folder, "no such folder; give the folder of the reference pictures")
    if limit is not None and limit < 1:
        raise ConfigError("limit", limit, "a whole number from 1")
    if coco is None and is_dreambench(folder):
        return [Item(*row) for row in read_dreambench(folder, limit)]
    rows = _captioned(folder, limit) if coco is None else _coco(Path(coco), folder)
    if not rows:
        raise FileError(folder, f"no pictures in it ({', '.join(SUFFIXES)}); give a folder of references")
    rows = sorted(rows, key=lambda row: row[0].as_posix())[:limit]
    bare = [path.name for path, caption, _ in rows if not caption]
    if bare:
        shown = f"{', '.join(bare[:4])}{', ...' if len(bare) > 4 else ''}"
        raise FileError(
            folder, f"{len(bare)} of {len(rows)} pictures have no caption ({shown}), which CLIP-T needs; write a .txt "
            f"beside each, or {METADATA} with file_name and text",
        )  # fmt: skip
    keys = _keys([path.relative_to(folder) for path, _, _ in rows])
    return [Item(key, caption, path, fields) for key, (path, caption, fields) in zip(keys, rows, strict=True)]


def _captioned(folder: Path, limit: int | None) -> list[_Row]:
    """The folder's references with their captions; only those of .txt files are read that the limit lets through."""
    entries = captioned.entries(folder)
    if not (folder / METADATA).is_file():
        entries = sorted(entries, key=lambda entry: entry.reference)[:limit]
    for entry in entries:
        if not os.path.isfile(folder / entry.reference):
            raise FileError(
                folder / METADATA,
                f"line {entry.line} names {entry.reference}, which is not beside it; take the line out",
            )
    return [(folder / e.reference, captioned.caption(folder, e), dict(e.fields)) for e in entries]


def _coco(path: Path, folder: Path) -> list[_Row]:
    """Pictures of the annotations that are in ``folder``, each with its first caption."""
    try:
        content = json.loads(read_text(path, 2**30))
        first: dict[Any, str] = {}
        for entry in content["annotations"]:
            first.setdefault(entry["image_id"], " ".join(str(entry["caption"]).split()))
        names = {str(entry["file_name"]): first.get(entry["id"], "") for entry in content["images"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            path, f"not COCO's captions ({error!r}); expected images (id, file_name) and annotations "
            "(image_id, caption), as in captions_val2017.json",
        ) from None  # fmt: skip
    rows: list[_Row] = [
        (folder / name, caption, {})
        for name, caption in names.items()
        if captioned.is_inside(name) and os.path.isfile(folder / name)
    ]
    if not rows:
        raise FileError(folder, f"none of the {len(names)} pictures that {path.name} names is in it")
    return [row for row in rows if row[1]]


def _short(key: str) -> str:
    """A key whose file's name no system finds too long."""
    if len(key.encode()) <= _LONGEST:
        return key
    kept = key.encode()[:_LONGEST].decode(errors="ignore")
    return f"{kept}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _keys(paths: Sequence[Path]) -> list[str]:
    """A unique name for the pictures of each, that any file system takes."""
    plain = [re.sub(r"[^\w.-]+", "_", path.with_suffix("").as_posix()) for path in paths]
    plain = [f"_{key}" if is_device(key) else key for key in map(_short, plain)]
    counts = Counter(key.lower() for key in plain)
    return [key if counts[key.lower()] == 1 else f"{key}_{i}" for i, key in enumerate(plain)]
