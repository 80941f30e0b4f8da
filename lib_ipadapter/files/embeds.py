"""Embeds: what the image encoder said of a unit's references, saved, so that they prompt again without encoder or
pictures.

A safetensors file: ``reference.0``, ``reference.1``, ... are the features that the adapter takes (before its
projection: pooled [1, E] or penultimate [1, T, W]), ``unconditional`` that of no picture, where it is not zeros. The
header says the format's version, encoder, feature, width, fit, title, and each picture's hash and weight.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.variant import VariantSpec
from ..atomic import remove
from ..errors import FileError, UnitError, UnsafeFile
from ..unit.fields import MAX_IMAGES, parse_weight
from ..unit.names import checked_name
from .tensors import TensorFile, open_safetensors, save_tensors

VERSION = "1"
_MARK = "ip_adapter_embeds"
_REFERENCE, _UNCONDITIONAL = "reference.", "unconditional"
_DIMENSIONS = {"pooled": 2, "penultimate": 3}


@dataclass(frozen=True)
class Source:
    """What embeds are of: the encoder's name, the feature's kind and width, and how pictures met the encoder."""

    encoder: str
    feature: str
    width: int
    fit: str

    @classmethod
    def of(cls, spec: VariantSpec, fit: str) -> Source:
        """What an adapter takes."""
        return cls(spec.encoder, spec.feature, spec.feature_width, fit)

    def __str__(self) -> str:
        return (
            f"{self.feature} features of {self.encoder or 'an encoder that is not known'}, {self.width} wide"
        )

    def serves(self, spec: VariantSpec) -> bool:
        """Whether an adapter takes them."""
        return (self.encoder, self.feature, self.width) == (spec.encoder, spec.feature, spec.feature_width)


@dataclass(frozen=True)
class Encoded:
    """One reference that needs no encoder: its feature, that of no picture (None: zeros), and the picture's hash."""

    feature: Tensor
    unconditional: Tensor | None
    source: Source
    hash: str = ""
    name: str = ""

    def for_adapter(self, spec: VariantSpec) -> Tensor:
        """The feature, for an adapter that takes it. Raises FileError."""
        if not self.source.serves(spec):
            wanted = Source.of(spec, "")
            raise FileError(
                f"{self.name}.safetensors",
                f"these embeds are {self.source}, and the adapter takes {wanted}. Choose an adapter that takes them, or "
                "save the pictures again with this one",
                field="images", value=self.name, expected=str(wanted),
            )  # fmt: skip
        return self.feature


@dataclass(frozen=True)
class Embeds:
    """The references of one file, in the unit's order."""

    name: str
    title: str
    source: Source
    hashes: tuple[str, ...]
    weights: tuple[float, ...]
    features: tuple[Tensor, ...] = field(default=(), repr=False)
    unconditional: Tensor | None = field(default=None, repr=False)

    def report(self) -> dict[str, Any]:
        """The header, JSON-safe."""
        pictures = [
            {"hash": name, "weight": weight} for name, weight in zip(self.hashes, self.weights, strict=True)
        ]
        return {"title": self.title, **vars(self.source), "pictures": pictures}

    def references(self) -> list[tuple[Encoded, float]]:
        """Each with its weight."""
        return [
            (Encoded(feature, self.unconditional, self.source, name, self.name), weight)
            for feature, name, weight in zip(self.features, self.hashes, self.weights, strict=True)
        ]

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all. Raises FileError."""
        tensors = {f"{_REFERENCE}{i}": feature for i, feature in enumerate(self.features)}
        if self.unconditional is not None:
            tensors[_UNCONDITIONAL] = self.unconditional
        told = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in self.report().items()
        }
        save_tensors(tensors, path, {_MARK: VERSION, **told})


def read(path: Path, header_only: bool = False) -> Embeds:
    """The embeds in a file. Raises FileError."""
    try:
        file = open_safetensors(path)
    except UnsafeFile as error:
        raise FileError(path, f"these are no embeds that can be read ({error}); save them again") from None
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from None
    version = file.metadata.get(_MARK)
    if version is None:
        raise FileError(path, "this file holds no embeds; choose one that this extension saved")
    if version != VERSION:
        raise FileError(
            path, f"its version is {version[:20]}, expected {VERSION}; update the extension, or save it again"
        )
    try:
        header = _header(file, path.stem)
        return header if header_only else _filled(header, file)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileError(path, f"the embeds are broken ({error}); save them again") from None


def _header(file: TensorFile, name: str) -> Embeds:
    told = file.metadata
    source = Source(told["encoder"], told["feature"], int(told["width"]), told["fit"])
    pictures = json.loads(told["pictures"])
    if not isinstance(pictures, list) or not 1 <= len(pictures) <= MAX_IMAGES:
        raise ValueError("pictures")
    weights = tuple(parse_weight(picture["weight"], "weight") for picture in pictures)
    hashes = tuple(str(picture["hash"]) for picture in pictures)
    names = {f"{_REFERENCE}{i}" for i in range(len(pictures))}
    extra = {_UNCONDITIONAL} if source.feature == "penultimate" else set()
    if set(file.shapes) != names | extra:
        raise ValueError(f"tensors {', '.join(sorted(file.shapes)[:4])}")
    form = _DIMENSIONS[source.feature], 1, source.width
    if any((len(shape), *shape[:1], *shape[-1:]) != form for shape in file.shapes.values()):
        raise ValueError(f"shapes {sorted(set(file.shapes.values()))[:4]}")
    return Embeds(name, told.get("title", ""), source, hashes, weights)


def _filled(header: Embeds, file: TensorFile) -> Embeds:
    tensors = file.tensors()
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise ValueError(f"NaN, infinite or whole numbers in {key}")
    features = tuple(tensors[f"{_REFERENCE}{i}"] for i in range(len(header.hashes)))
    parts = {"features": features, "unconditional": tensors.get(_UNCONDITIONAL)}
    return Embeds(**{**vars(header), **parts})


class EmbedsFolder:
    """The embeds of a folder, which need not exist yet: NAME.safetensors each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """In alphabetical order."""
        files = self.folder.glob("*.safetensors") if self.folder.is_dir() else ()
        return sorted((file.stem for file in files if not file.name.startswith(".")), key=str.casefold)

    def load(self, name: Any, header_only: bool = False) -> Embeds:
        """Raises UnitError for a name that is not there, FileError for a broken file."""
        path = self._path(name)
        if not path.is_file():
            known = ", ".join(self.names()[:20]) or "none are saved yet"
            raise UnitError("embeds", name, f"the name of saved embeds: {known}")
        return read(path, header_only)

    def reports(self) -> dict[str, Any]:
        """The header of each file by its name; of one that cannot be read, the error."""
        found: dict[str, Any] = {}
        for name in self.names():
            try:
                found[name] = self.load(name, header_only=True).report()
            except (UnitError, FileError) as error:
                found[name] = {"error": str(error)}
        return found

    def save(self, embeds: Embeds) -> None:
        """Writes them under their name. Raises UnitError, FileError."""
        path = self._path(embeds.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror or error}") from None
        embeds.save(path)

    def remove(self, name: Any) -> None:
        """Deletes a file. Raises UnitError for a name that is not there."""
        path = self._path(name)
        if not path.is_file():
            raise UnitError("embeds", name, "the name of saved embeds")
        remove(path)

    def check(self, name: Any) -> None:
        """Raises UnitError for what is no name."""
        self._path(name)

    def _path(self, name: Any) -> Path:
        return self.folder / f"{checked_name('embeds', name)}.safetensors"
