"""DreamBench++ (arXiv 2406.16855): its folder of references, and our pictures in the layout that its scripts measure.

FOLDER/images/CATEGORY/00.jpg, FOLDER/captions/CATEGORY/00.txt    the subject in the first line, then a prompt a line
OUT/dreambench/METHOD-WEIGHT/src_image/COLLECTION/i_j.jpg         the reference of prompt i, sample j
                            /text/COLLECTION/i_j.txt              its prompt
                            /tgt_image/COLLECTION/i_j.jpg         what was drawn
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from ..atomic import replacing
from ..errors import FileError
from ..files.disk import read_text

COLLECTION, PROMPT = "collection", "prompt_number"  # fields of an item
Row = tuple[str, str, Path, dict[str, str]]


def is_dreambench(folder: Path) -> bool:
    """Whether a folder has DreamBench++'s layout."""
    return (folder / "images").is_dir() and (folder / "captions").is_dir()


def read_dreambench(folder: Path, limit: int | None = None) -> list[Row]:
    """(key, prompt, picture, fields) of each prompt of each picture, pictures sorted by name, of the first ``limit``
    pictures. Raises FileError."""
    found: list[Row] = []
    for picture in sorted((folder / "images").rglob("*.jpg"))[:limit]:
        text = folder / "captions" / picture.relative_to(folder / "images").with_suffix(".txt")
        try:
            lines = [line.strip() for line in read_text(text).splitlines()]
        except FileError as error:
            raise FileError(text, f"{error}; expected a subject and its prompts, a line each") from None
        prompts = [line for line in lines[1:] if line]
        if not lines or not lines[0] or not prompts:
            raise FileError(text, "expected a subject in the first line and a prompt in each of the next")
        name = collection_of(picture, lines[0])
        for number, prompt in enumerate(prompts):
            fields = {COLLECTION: name, PROMPT: str(number), "subject": lines[0]}
            found.append((f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{number}", prompt, picture, fields))
    if not found:
        raise FileError(folder, "no .jpg in images/; give DreamBench++'s data folder")
    return found


def collection_of(picture: Path, subject: str) -> str:
    """As DreamBench++ names it: category, number, subject."""
    category = picture.parent.name
    if category in ("animal", "human"):
        category = f"live_subject_{category}"
    return f"{category}_{picture.stem}_{subject.lower().replace(' ', '_')}"


class Export:
    """Writes the pictures of one method at one weight into ``folder``."""

    def __init__(self, folder: Path, negative: str) -> None:
        self.folder = folder
        self._text(folder / "negative_prompt.txt", negative)

    def add(
        self, key: str, fields: Mapping[str, str], index: int, prompt: str, reference: Image.Image, drawn: Image.Image
    ) -> None:
        """The ``index``-th picture of an item. Raises FileError."""
        name = f"{fields.get(PROMPT, '0')}_{index}"
        own = fields.get(COLLECTION, key)
        self._text(self.folder / "text" / own / f"{name}.txt", prompt)
        for kind, picture in (("src_image", reference), ("tgt_image", drawn)):
            with replacing(self._ready(self.folder / kind / own / f"{name}.jpg")) as part:
                picture.convert("RGB").save(part, "JPEG", quality=100, subsampling=0)

    def _text(self, path: Path, text: str) -> None:
        with replacing(self._ready(path)) as part:
            part.write_text(text, encoding="utf-8")

    @staticmethod
    def _ready(path: Path) -> Path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror or error}; choose another --out") from None
        return path
