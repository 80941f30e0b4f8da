"""Identity: is it the same person, and is it found among others? By cosines of ArcFace embeddings (arXiv 1801.07698) of
the largest faces of picture and reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError, FaceMissing
from ..faces import FaceAnalyser
from .items import Item

Array = NDArray[Any]
IDENTITY, FOUND, TOP_1, RANK = "identity", "face_found", "identity_top_1", "identity_rank"


class Likeness:
    """Measures for ``evaluate``'s extra, by any recogniser. embed: a picture to a vector, or None without a face;
    people: pictures of all the references' persons, under the references' keys, among whom a person is looked for;
    with fewer than two nobody is."""

    def __init__(self, embed: Callable[[Image.Image], Array | None], people: Sequence[Item] = ()) -> None:
        self._embed, self._people = embed, people
        self._references: dict[str, Array | None] = {}
        self._gallery: tuple[dict[str, int], Array] | None = None
        self._last: tuple[Image.Image, Array | None] | None = None

    def measures(self) -> dict[str, Callable[[Image.Image, Item], float]]:
        """By name: the cosine with the reference, NaN where either has no face; and whether the picture has one, whose
        mean is the rate of faces found. A picture without a face says nothing of who it is, so both belong together.
        Where there are ``people``: whether its own person is the closest, and at which place it is."""
        own: dict[str, Callable[[Image.Image, Item], float]] = {IDENTITY: self.cosine, FOUND: self.found}
        if len(self._people) > 1:
            own |= {TOP_1: self.first, RANK: self.rank}
        return own

    def cosine(self, picture: Image.Image, item: Item) -> float:
        """-1..1"""
        if item.key not in self._references:
            self._references[item.key] = self._unit(item.load())
        one, other = self._references[item.key], self._embedding(picture)
        return math.nan if one is None or other is None else float(one @ other)

    def found(self, picture: Image.Image, item: Item) -> float:
        """1 or 0"""
        return float(self._embedding(picture) is not None)

    def first(self, picture: Image.Image, item: Item) -> float:
        """1 or 0; 0 without a face in the picture: nobody is found by it. NaN where ``people`` has no face of the
        person."""
        if item.key not in self._looked_at()[0]:
            return math.nan
        return float(self.rank(picture, item) == 1)

    def rank(self, picture: Image.Image, item: Item) -> float:
        """1 is the closest of ``people``; NaN without a face in the picture, or without one of the person."""
        places, vectors = self._looked_at()
        seen = self._embedding(picture)
        if seen is None or item.key not in places:
            return math.nan
        similar = vectors @ seen
        return 1.0 + float((similar > similar[places[item.key]]).sum())

    def _looked_at(self) -> tuple[dict[str, int], Array]:
        """(row of each person with a face, vectors [P, E])."""
        if self._gallery is None:
            found = {item.key: self._unit(item.load()) for item in self._people}
            known = {key: vector for key, vector in found.items() if vector is not None}
            places = {key: place for place, key in enumerate(known)}
            self._gallery = places, np.stack(list(known.values())) if known else np.zeros((0, 1))
        return self._gallery

    def _embedding(self, picture: Image.Image) -> Array | None:
        """Of the picture being measured: once for all measures."""
        if self._last is None or self._last[0] is not picture:
            self._last = picture, self._unit(picture)
        return self._last[1]

    def _unit(self, picture: Image.Image) -> Array | None:
        """Of length 1; None without a face."""
        raw = self._embed(picture)
        if raw is None:
            return None
        unit: Array = raw.astype(np.float64) / np.linalg.norm(raw.astype(np.float64))
        return unit


class Identity(Likeness):
    """By InsightFace's recognisers. The largest face counts, in the reference and in the picture."""

    def __init__(self, faces: FaceAnalyser, recogniser: str, people: Sequence[Item] = ()) -> None:
        """Raises FaceError where models or packages are missing."""
        faces.check(recogniser)
        self._faces, self._recogniser = faces, recogniser
        super().__init__(self._of_largest, people)

    def _of_largest(self, picture: Image.Image) -> Array | None:
        try:
            face = max(self._faces.faces(picture), key=lambda face: face.area)
        except FaceMissing:
            return None
        return self._faces.embedding(picture, face, self._recogniser)


def people_of(references: Sequence[Item], others: Sequence[Item] | None) -> Sequence[Item]:
    """Among whom the references' persons are looked for: ``others``, which have their keys, or the references
    themselves. Raises ConfigError for a reference without its other."""
    if others is None:
        return references
    by_key = {item.key: item for item in others}
    lacking = [item.key for item in references if item.key not in by_key]
    if lacking:
        raise ConfigError(
            "identity-people", len(by_key), f"a picture of each reference's person under the reference's name; "
            f"{len(lacking)} are missing: {', '.join(lacking[:4])}",
        )  # fmt: skip
    return [by_key[item.key] for item in references]
