"""References by name in the place of what they stand for; and references in turn, one for each picture to draw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ..attention.session import COND, UNCOND, ImagePrompt
from ..errors import UnitError
from ..files.embeds import Embeds
from ..pictures.images import SUFFIXES
from ..unit import Unit
from ..unit.crops import box_at
from ..unit.fields import MAX_IMAGES, Reference
from ..unit.names import Named, checked_name


class Shelf(Protocol):
    """Where named references are found."""

    def embeds(self, name: str) -> Embeds:
        """Raises UnitError, FileError."""

    def folder(self, name: str) -> list[Path]:
        """The folder's pictures. Raises UnitError."""


class PictureFolders:
    """The folders of a folder, which need not exist yet; only their own pictures count, not those below."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """In alphabetical order."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(
            (path.name for path in found if path.is_dir() and path.name[0] != "."), key=str.casefold
        )

    def pictures(self, name: Any) -> list[Path]:
        """By name, as the WebUI sorts files: 2 before 10. Raises UnitError."""
        return [path for path in self._files(name) if path.suffix.lower() in SUFFIXES]

    def others(self, name: Any) -> list[str]:
        """The names of the files that are no pictures. Raises UnitError."""
        return [path.name for path in self._files(name) if path.suffix.lower() not in SUFFIXES]

    def _files(self, name: Any) -> list[Path]:
        folder = self.root / checked_name("folder", name)
        if not folder.is_dir():
            known = ", ".join(self.names()[:20]) or "there is none yet"
            raise UnitError("folder", name, f"the name of a folder in {self.root.name}: {known}")
        return in_order(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def in_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers as numbers."""

    def key(path: Path) -> list[Any]:
        parts = re.split("([0-9]+)", path.name.lower())
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(paths, key=key)


def spread(unit: Unit, shelf: Shelf) -> Unit:
    """``unit`` with the pictures of its folders in their places. Raises UnitError."""
    images: list[Reference] = []
    for reference in unit.images:
        named = reference.image
        if isinstance(named, Named) and named.kind == "folder":
            paths = shelf.folder(named.name)
            if not paths:
                raise UnitError("folder", named.name, f"a folder with pictures ({', '.join(SUFFIXES)})")
            images += [replace(reference, image=path) for path in paths]
        else:
            images.append(reference)
    return _with(unit, images)


def expanded(unit: Unit, shelf: Shelf) -> Unit:
    """``unit`` with all that is Named in its place, checked as a unit of pictures is. Raises UnitError, FileError."""
    unit = spread(unit, shelf)
    images: list[Reference] = []
    for reference in unit.images:
        named = reference.image
        if isinstance(named, Named):
            held = shelf.embeds(named.name).references()
            images += [
                replace(reference, image=encoded, weight=reference.weight * own) for encoded, own in held
            ]
        else:
            images.append(reference)
    unit = _with(unit, images)
    unit.check_images()
    return unit


def _with(unit: Unit, images: Sequence[Reference]) -> Unit:
    if len(images) > MAX_IMAGES:
        raise UnitError(
            "images", f"{len(images)} images", f"at most {MAX_IMAGES}, those of folders and embeds counted"
        )
    return replace(unit, images=tuple(images))


def singles(unit: Unit, places: Sequence[int], shelf: Shelf) -> list[Unit]:
    """Of a unit whose references take turns: a unit for each of the job's pictures, up to the first that would come
    again. places: which reference (modulo their number) each picture takes. Raises UnitError."""
    images = spread(unit, shelf).images
    chosen = [place % len(images) for place in places[: len(images)]]
    return [
        replace(unit, images=(images[i],), box=box_at(unit.box, i, len(images)), distribute="together")
        for i in chosen
    ]


def in_turn(prompts: Sequence[ImagePrompt]) -> ImagePrompt:
    """One prompt of several that differ in their tokens alone: a pair of token sets for each picture. Raises
    UnitError."""
    counts = sorted({prompt.tokens.shape[1] for prompt in prompts})
    if len(counts) > 1:
        raise UnitError(
            "distribute",
            "one per picture",
            f"references of as many tokens each, got {' and '.join(map(str, counts))}: embeds of several pictures "
            "have more than one picture. Set combine to average",
        )
    tokens = torch.cat([prompt.tokens for prompt in prompts])
    weights = torch.stack([prompt.token_weights for prompt in prompts for _ in (COND, UNCOND)])
    return replace(prompts[0], tokens=tokens, token_weights=weights)
