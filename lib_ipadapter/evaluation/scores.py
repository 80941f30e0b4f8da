"""The measures of each picture, and their means per reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..pictures import images
from .items import Item
from .metric import Metric
from .stats import Values

Extra = Mapping[str, Callable[[Image.Image, Item], float]]
_CHUNK = 32  # pictures in memory


PREFIX = "A photo depicts "  # of CLIPScore's texts (arXiv 2104.08718, section 3)
RATES = frozenset({"top_1", "top_5"})
# Those of the references with themselves are 1, and no hits
NUMBERS = frozenset({"dino", "dinov2", "csd", "identity", "identity_rank"})


def clipscore(cosine: float) -> float:
    """arXiv 2104.08718, section 3, of the cosine of picture and PREFIX + text."""
    return 2.5 * max(cosine, 0.0)


@dataclass(frozen=True)
class References:
    """The embedded references. digests: content hashes; pictures, texts: unit vectors [R, E]; prefixed: those of
    PREFIX + text; measured: the references' own measures."""

    digests: list[str]
    pictures: Tensor
    texts: Tensor
    prefixed: Tensor
    measured: Mapping[str, Values]

    @classmethod
    def look_at(
        cls, items: Sequence[Item], texts: Sequence[str], metric: Metric, extra: Extra,
        bar: Callable[[int, str], Any],
    ) -> References:  # fmt: skip
        """Reads all of them, a few at a time, so that a broken one shows before anything is drawn. Raises
        ImageError."""
        digests: list[str] = []
        vectors = []
        values: dict[str, list[float]] = {name: [] for name in extra}
        with bar(len(items), "references") as progress:
            for start in range(0, len(items), _CHUNK):
                chunk = items[start : start + _CHUNK]
                pictures = [item.load() for item in chunk]
                digests += [images.content_hash(picture) for picture in pictures]
                vectors.append(metric.images(pictures))
                for name, measure in extra.items():
                    values[name] += [float(measure(p, item)) for p, item in zip(pictures, chunk, strict=True)]
                progress.update(len(chunk))
        embedded, against = torch.cat(vectors), metric.texts(texts)
        prefixed = metric.texts([f"{PREFIX}{text}" for text in texts])
        scores = [clipscore(value) for value in (embedded * prefixed).sum(-1).tolist()]
        own = {"clip_t": Values((embedded * against).sum(-1).tolist()), "clipscore": Values(scores)}
        others = {name: Values(found, _is_rate(name, found)) for name, found in values.items()}
        return cls(digests, embedded, against, prefixed, {**own, **others})


class Scores:
    """Measures picture by picture, column by column."""

    OWN = frozenset({"clip_i", "clip_t", "clipscore", "top_1", "top_5"})

    def __init__(self, items: Sequence[Item], references: References, metric: Metric, extra: Extra) -> None:
        self._items, self._references, self._metric, self._extra = items, references, metric, extra
        self._lines: list[str] = []
        self._column: list[tuple[int, dict[str, float]]] = []

    def add(
        self, method: str, weight: float | None, places: Sequence[int], pictures: Sequence[Image.Image],
        seeds: Sequence[int],
    ) -> None:  # fmt: skip
        """Measures pictures, each made for the reference at its place."""
        vectors = self._metric.images(pictures)
        for place, picture, vector, seed in zip(places, pictures, vectors, seeds, strict=True):
            measured = self._of(place, picture, vector)
            self._column.append((place, measured))
            numbers = {name: None if math.isnan(value) else round(value, 6) for name, value in measured.items()}
            line = {
                "method": method,
                "weight": weight,
                "key": self._items[place].key,
                "seed": seed,
                **numbers,
            }
            self._lines.append(json.dumps(line, ensure_ascii=False))

    def _of(self, place: int, picture: Image.Image, vector: Tensor) -> dict[str, float]:
        similar = self._references.pictures @ vector
        closer = int((similar > similar[place]).sum())
        text = float(vector @ self._references.texts[place])
        score = clipscore(float(vector @ self._references.prefixed[place]))
        found = {"clip_i": float(similar[place]), "clip_t": text, "clipscore": score}
        if len(similar) > 1:
            found["top_1"] = float(closer < 1)
        if len(similar) > 5:
            found["top_5"] = float(closer < 5)
        own = {name: float(measure(picture, self._items[place])) for name, measure in self._extra.items()}
        return {**found, **own}

    def values(self) -> dict[str, Values]:
        """Of the pictures added since the last call: for each reference the mean over its pictures."""
        names = list(dict.fromkeys(name for _, measured in self._column for name in measured))
        of_place: list[list[dict[str, float]]] = [[] for _ in self._items]
        for place, measured in self._column:
            of_place[place].append(measured)
        self._column = []
        found = {}
        for name in names:
            each = [[measured[name] for measured in pictures] for pictures in of_place]
            rate = _is_rate(name, [value for values in each for value in values])
            found[name] = Values([mean(values) for values in each], rate)
        return found

    def write(self, path: Path) -> None:
        """A line of JSON for each picture. Raises FileError."""
        with replacing(path) as part:
            part.write_text("".join(f"{line}\n" for line in self._lines), encoding="utf-8")


def mean(values: Sequence[float]) -> float:
    """Of those that are not NaN; NaN of none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _is_rate(name: str, values: Sequence[float]) -> bool:
    """Whether a measure says hit or miss: those of RATES, and further ones that are 0 or 1 for every picture."""
    if name in RATES | Scores.OWN | NUMBERS:
        return name in RATES
    return all(value in (0.0, 1.0) for value in values if not math.isnan(value))
