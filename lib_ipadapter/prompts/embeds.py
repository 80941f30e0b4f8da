"""Embeds: the encoder's features of a unit's references in a file, which prompt without encoder or pictures.

A safetensors file: ``reference.0.<feature>``, ``reference.1.<feature>``, ... are the features that the adapter takes
(before its projection: pooled [1, E], penultimate [1, T, W], levels [1, 5, T, W]), ``unconditional.<feature>`` those
of no picture, where they are not zeros. The header has the format's version, the features (kind, width, encoder), fit,
title, and each picture's hash and weight.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ..atomic import remove
from ..encoders.source import identity
from ..encoders.spec import LEVELS, ZERO_FEATURES, Feature, Need, Of
from ..errors import FileError, UnitError, UnsafeFile
from ..files.tensors import TensorFile, open_safetensors, save_tensors
from ..unit.fields import MAX_IMAGES, parse_weight
from ..unit.names import checked_name, in_text

VERSION = "1"
_MARK = "ip_adapter_embeds"
_REFERENCE, _UNCONDITIONAL = "reference", "unconditional"
_DIMENSIONS = {"pooled": 2, "penultimate": 3, "levels": 4, "face": 2, "raw face": 2}
_OF = {"picture": "", "face": ", of an aligned face", "bare face": ", of a face without background"}
FeatureMap = Mapping[str, Tensor]


@dataclass(frozen=True)
class EncodedReference:
    """One reference that needs no encoder. features: by name; unconditional: those of no picture, but for zeros;
    needs: what they are; id: the picture's content id; key: equal keys mean equal features; name: of the file."""

    features: FeatureMap
    unconditional: FeatureMap
    needs: tuple[Need, ...]
    id: str = ""
    key: Hashable = None
    name: str = ""

    def for_needs(self, needs: tuple[Need, ...]) -> FeatureMap:
        """The features, for an adapter that takes them. Raises FileError."""
        if len(needs) != len(self.needs) or not all(map(_serves, self.needs, needs)):
            needed, given = _listed(needs), _listed(self.needs)
            raise FileError(
                f"{self.name}.safetensors",
                f"these embeds are {given}, and the adapter takes {needed}. Choose an adapter that takes them, or "
                "save the pictures again with this one",
                field="images", value=self.name, expected=needed,
            )  # fmt: skip
        return self.features


def _serves(saved: Need, need: Need) -> bool:
    """An adapter that does not say which encoder it takes, and whose encoder is not on the disk, takes its width."""
    what = (need.feature, need.width, need.of)
    return (saved.feature, saved.width, saved.of) == what and need.encoder in ("", saved.encoder)


def _listed(needs: tuple[Need, ...]) -> str:
    return " and ".join(
        f"{need.feature} features of {need.encoder or 'an encoder that is not known'}, {need.width} wide"
        + ("" if need.is_face else _OF[need.of])
        for need in needs
    )


@dataclass(frozen=True)
class Embeds:
    """The references of one file, in the unit's order. fit: how the pictures were fitted to the square; key: of the
    file's version."""

    name: str
    title: str
    needs: tuple[Need, ...]
    fit: str
    hashes: tuple[str, ...]
    weights: tuple[float, ...]
    features: tuple[FeatureMap, ...] = field(default=(), repr=False)
    unconditional: FeatureMap = field(default_factory=dict, repr=False)
    key: Hashable = None

    def report(self) -> dict[str, Any]:
        """The header, JSON-safe. Kind, width and encoder of the first feature stand in it by themselves, too."""
        pictures = [{"hash": name, "weight": weight} for name, weight in zip(self.hashes, self.weights, strict=True)]
        features = [vars(need) for need in self.needs]
        first = vars(self.needs[0])
        return {"title": self.title, **first, "features": features, "fit": self.fit, "pictures": pictures}

    def references(self) -> list[tuple[EncodedReference, float]]:
        """Each with its weight."""
        return [
            (
                EncodedReference(features, self.unconditional, self.needs, id_, (self.key, i), self.name),
                weight,
            )
            for i, (features, id_, weight) in enumerate(zip(self.features, self.hashes, self.weights, strict=True))
        ]

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all. Raises FileError."""
        tensors = {f"{_UNCONDITIONAL}.{name}": feature for name, feature in self.unconditional.items()}
        for i, features in enumerate(self.features):
            tensors |= {f"{_REFERENCE}.{i}.{name}": feature for name, feature in features.items()}
        header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.report().items()}
        save_tensors(tensors, path, {_MARK: VERSION, **header})


def read(path: Path, header_only: bool = False) -> Embeds:
    """The embeds in a file. Raises FileError."""
    try:
        key = identity(path)
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
        header = _header(file, path.stem, key)
        return header if header_only else _filled(header, file)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FileError(path, f"the embeds are broken ({error}); save them again") from None


def _header(file: TensorFile, name: str, key: Hashable) -> Embeds:
    header = file.metadata
    needs = tuple(_need(entry) for entry in _entries(header["features"], 8))
    pictures = _entries(header["pictures"], MAX_IMAGES)
    weights = tuple(parse_weight(picture["weight"], "weight") for picture in pictures)
    hashes = tuple(str(picture["hash"]) for picture in pictures)
    _check_shapes(file, needs, len(pictures))
    return Embeds(name, header.get("title", ""), needs, header["fit"], hashes, weights, key=key)


def _entries(text: str, most: int) -> list[dict[str, Any]]:
    entries = json.loads(text)
    if not isinstance(entries, list) or not 1 <= len(entries) <= most:
        raise ValueError(f"{text[:40]} is no list of 1 to {most}")
    return entries


def _need(entry: dict[str, Any]) -> Need:
    if entry["feature"] not in get_args(Feature):
        raise ValueError(f"feature {str(entry['feature'])[:40]}")
    of = entry.get("of", "picture")
    if of not in get_args(Of):
        raise ValueError(f"of {str(of)[:40]}")
    return Need(entry["feature"], int(entry["width"]), str(entry["encoder"]), of)


def _check_shapes(file: TensorFile, needs: tuple[Need, ...], count: int) -> None:
    """Raises ValueError for tensors that are missing, left over or misshapen."""
    wanted = {f"{_REFERENCE}.{i}.{need.feature}": need for i in range(count) for need in needs}
    wanted |= {f"{_UNCONDITIONAL}.{need.feature}": need for need in needs if need.feature not in ZERO_FEATURES}
    if set(file.shapes) != set(wanted):
        raise ValueError(f"tensors {', '.join(sorted(file.shapes)[:4])}")
    for key, need in wanted.items():
        shape = file.shapes[key]
        if (len(shape), *shape[:1], *shape[-1:]) != (_DIMENSIONS[need.feature], 1, need.width):
            raise ValueError(f"{key} of shape {list(shape)}")
        if need.feature == "levels" and shape[1] != LEVELS:
            raise ValueError(f"{key} of shape {list(shape)}")


def _filled(header: Embeds, file: TensorFile) -> Embeds:
    tensors = file.tensors()
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise ValueError(f"NaN, infinite or whole numbers in {key}")
    names = [need.feature for need in header.needs]
    features = tuple({name: tensors[f"{_REFERENCE}.{i}.{name}"] for name in names} for i in range(len(header.hashes)))
    nothing = {name: tensors[f"{_UNCONDITIONAL}.{name}"] for name in names if f"{_UNCONDITIONAL}.{name}" in tensors}
    return Embeds(**{**vars(header), "features": features, "unconditional": nothing})


class EmbedsFolder:
    """The embeds of a folder, which need not exist yet: NAME.safetensors each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """In alphabetical order."""
        files = self.folder.glob("*.safetensors") if self.folder.is_dir() else ()
        return in_text(file.stem for file in files if not file.name.startswith(".") and file.is_file())

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
        """Deletes a file. Raises UnitError for a name that is not there, FileError."""
        path = self._path(name)
        if not path.is_file():
            raise UnitError("embeds", name, "the name of saved embeds")
        remove(path)

    def check(self, name: Any) -> None:
        """Raises UnitError for what is no name."""
        self._path(name)

    def _path(self, name: Any) -> Path:
        return self.folder / f"{checked_name('embeds', name)}.safetensors"
