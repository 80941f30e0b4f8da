"""Where each reference acted: maps gathered while a picture is drawn, from the q and K' at hand.

A layer gives Z + T (arXiv 2308.06721, eq. 5): Z is the text branch's output, T the unit's own term, with λ, the
weights of layer and step and the region in it. At query n, for reference r of the unit:

    share_r(n) = mean over heads of the sum over r's tokens of Softmax(QK'ᵀ/√d)
    map_r(n) = share_r(n) · |T(n)| / (|T(n)| + |Z(n)|)

A map is the mean over layers and steps; where the unit did not act it counts as 0. Only cond rows count. Calls that
cannot be laid over the picture (tiles, attention that runs twice) are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..layers import Layer
from ..region import depth_of, halved
from ..term import full_precision, split_heads

PARTS = {"input": "in", "middle": "mid", "output": "out"}
THIRDS = ("early", "middle", "late")
COLUMNS = ("all", *PARTS.values(), *THIRDS)
_SCORES = 2**24  # elements of QK'ᵀ at a time
_ROUNDING = 1e-6  # of fractions: 1/3 is the middle, however it was divided

Size = tuple[int, int]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """A step's fraction of the sampling and, for each part of the UNet (PARTS), its maps' means [references], or None
    where it has no layer."""

    fraction: float
    means: dict[str, Array | None]


@dataclass(frozen=True)
class Maps:
    """Of one prompt in one picture: for each of COLUMNS a map [references, height, width] over the latents, in 0..1,
    or None where there was no such layer or step; and their means step by step."""

    columns: dict[str, Array | None]
    steps: tuple[Step, ...] = ()

    @property
    def top(self) -> float:
        """The largest value."""
        return max(float(values.max()) for values in self.columns.values() if values is not None)


@dataclass(frozen=True)
class Level:
    """The tokens of a layer: ``size`` height and width, those of the latents halved ``depth`` times, rounding up."""

    size: Size
    depth: int

    @classmethod
    def of(cls, latents: Size, tokens: int) -> Level | None:
        """The level of such latents that has so many tokens."""
        depth = depth_of(latents, tokens)
        return None if depth is None else cls(halved(latents, depth), depth)

    def over(self, values: Array, latents: Size) -> Array:
        """Values [R, tokens] over the latents [R, H, W], each over those that its token stands for."""
        fine = values.reshape(-1, *self.size).repeat(2**self.depth, 1).repeat(2**self.depth, 2)
        return fine[:, : latents[0], : latents[1]]


def shares(query: Tensor, key: Tensor, references: int, tokens: int) -> Tensor:
    """[B, references, N]: of query [B, N, heads·d] and key [B, heads, T, d], the part of the attention that each
    reference's tokens get, mean over heads. T is a multiple of ``tokens`` (attention.fill_vector), which are the
    references' side by side."""
    heads, count = key.shape[1:3]
    at_a_time = max(1, _SCORES // (query.shape[0] * heads * count))
    with full_precision(query.device):
        parts = [
            _shares(split_heads(part, heads).float(), key.float(), references, tokens)
            for part in query.split(at_a_time, dim=1)
        ]
    return torch.cat(parts, dim=2)


def _shares(query: Tensor, key: Tensor, references: int, tokens: int) -> Tensor:
    attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    grouped = attention.unflatten(-1, (-1, references, tokens // references)).sum((-3, -1))
    return grouped.mean(1).transpose(1, 2)


@dataclass(frozen=True)
class _Term:
    """What waits for Z: rows of the call and their places in the step, shares [rows, R, N] (None: one reference, all of
    it), |T| [rows, N], and the term's batch and tokens."""

    rows: Tensor
    places: tuple[int, ...]
    level: Level
    shares: Tensor | None
    length: Tensor
    shape: Size


@dataclass(frozen=True)
class _Seen:
    """Maps [rows, R, N] of one layer in the running step."""

    places: tuple[int, ...]
    level: Level
    values: Tensor


_Key = tuple[int, str, float]  # prompt, part of the UNet, fraction of the sampling


class Recorder:
    """Gathers the maps of one pass over one batch. prompts: of each, how many references are shown (0: none), and how
    many tokens it has. ``left_out`` counts what could not be followed, complete when ``maps`` was asked for."""

    def __init__(self, prompts: Sequence[tuple[int, int]]) -> None:
        self._prompts = tuple(prompts)
        self._layers: tuple[Layer, ...] = ()
        self._acts: Sequence[Callable[[Layer], bool]] = ()
        self._index: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self.clear()

    def clear(self) -> None:
        """Nothing is seen yet."""
        self.left_out = 0
        # Of whole maps by thirds, of means by steps: all maps of all steps would be much to keep.
        self._sums: dict[tuple[int, str, int, Level], Tensor] = {}
        self._means: dict[_Key, Tensor] = {}
        self._counts: dict[_Key, defaultdict[int, float]] = {}
        self._pass: object = None
        self._latents: Size | None = None
        self._pictures: dict[int, int] = {}
        self._fraction = 0.0
        self._whole = True
        self._waiting: dict[int, dict[int, _Term]] = {}
        self._step: dict[tuple[int, Layer], list[_Seen]] = {}

    def fit(self, layers: Sequence[Layer], acts: Sequence[Callable[[Layer], bool]]) -> None:
        """The UNet's layers, and of each prompt whether its weight there is not 0."""
        self._layers, self._acts = tuple(layers), tuple(acts)

    def step(
        self,
        rows: Sequence[int],
        pictures: Sequence[int] | None,
        fraction: float,
        hires: bool,
        size: Size | None,
        acting: Sequence[bool],
    ) -> None:
        """A step begins: its cond rows, the picture of each (None: one row each), and which prompts act. The maps are
        those of the last pass; size: of its latents, None for that of the first call."""
        self._commit()
        of_rows = range(len(rows)) if pictures is None else pictures
        known = len(of_rows) == len(rows)
        run = (hires, size, len(rows))
        if run != self._pass:
            self.clear()
            self._pass, self._latents = run, size
        self.left_out += not known
        self._pictures = dict(zip(rows, of_rows)) if known else {}
        self._fraction = fraction
        for prompt, layer in self._shown():
            if not acting[prompt] or not self._acts[prompt](layer):
                for picture in set(self._pictures.values()):
                    self._count(prompt, layer)[picture] += 1

    def _shown(self) -> Iterator[tuple[int, Layer]]:
        for prompt, (references, _) in enumerate(self._prompts):
            if references:
                yield from ((prompt, layer) for layer in self._layers)

    def _count(self, prompt: int, layer: Layer) -> defaultdict[int, float]:
        return self._counts.setdefault((prompt, layer.part, self._fraction), defaultdict(float))

    def call(self, latents: Size, whole: bool) -> None:
        """The UNet is called with latents of this size, and they are all that the step draws, or not."""
        self._waiting.clear()
        self._latents = self._latents or (latents if whole else None)
        self._whole = whole and latents == self._latents

    def term(
        self, prompt: int, layer: Layer, places: tuple[int, ...], query: Tensor, key: Tensor, term: Tensor
    ) -> None:
        """A prompt's term T [B, N, width] of a layer, made of query [B, N, width] and key [B, heads, T, d], whose rows
        stand at ``places`` of the step."""
        held = tuple(row for row, place in enumerate(places) if place in self._pictures)
        if not held:
            return
        level = Level.of(self._latents, query.shape[1]) if self._latents and self._whole else None
        if level is None or len(set(places)) < len(places):
            self.left_out += 1
            return
        rows, (references, tokens) = self._at(held, query.device), self._prompts[prompt]
        with torch.no_grad():
            split = shares(query[rows], key[rows], references, tokens) if references > 1 else None
            length = torch.linalg.vector_norm(term[rows], dim=-1, dtype=torch.float32)
        self._waiting.setdefault(layer.position, {})[prompt] = _Term(
            rows, tuple(places[row] for row in held), level, split, length, (term.shape[0], term.shape[1])
        )

    def see(self, layer: Layer, hidden: Tensor) -> None:
        """Z [B, N, width] of that layer."""
        for prompt, held in self._waiting.pop(layer.position, {}).items():
            if hidden.shape[:2] != held.shape:
                self.left_out += 1
                continue
            with torch.no_grad():
                text = torch.linalg.vector_norm(hidden[held.rows], dim=-1, dtype=torch.float32)
                strength = (held.length / (held.length + text)).nan_to_num_(0.0)[:, None]
                values = strength if held.shares is None else held.shares * strength
            self._step.setdefault((prompt, layer), []).append(_Seen(held.places, held.level, values))

    def _at(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        if (rows, device) not in self._index:
            self._index[rows, device] = torch.tensor(rows, device=device)
        return self._index[rows, device]

    def _commit(self) -> None:
        """The step's maps are added up. A layer that saw a row twice attends to more than the picture."""
        per_picture = Counter(self._pictures.values())
        for (prompt, layer), parts in self._step.items():
            places = [place for part in parts for place in part.places]
            if len(set(places)) < len(places):
                self.left_out += 1
                continue
            for part in parts:
                self._add(prompt, layer, part, per_picture)
        self._step.clear()
        self._waiting.clear()

    def _add(self, prompt: int, layer: Layer, part: _Seen, per_picture: Counter[int]) -> None:
        pictures = [self._pictures[place] for place in part.places]
        values, means = part.values, part.values.mean(-1)
        map_key = prompt, layer.part, _third(self._fraction), part.level
        mean_key = prompt, layer.part, self._fraction
        shape = (max(per_picture) + 1, *values.shape[1:])
        if map_key not in self._sums:
            self._sums[map_key] = values.new_zeros(shape)
        if mean_key not in self._means:
            self._means[mean_key] = values.new_zeros(shape[:2])
        total, total_mean = self._sums[map_key], self._means[mean_key]
        for row, picture in enumerate(pictures):
            # Of sub-prompts (AND) the mean
            share = 1 / per_picture[picture]
            total[picture].add_(values[row], alpha=share)
            total_mean[picture].add_(means[row], alpha=share)
            self._count(prompt, layer)[picture] += share

    def maps(self, prompt: int) -> list[Maps | None]:
        """The prompt's maps in each picture of the batch; None where nothing was seen."""
        self._commit()
        found = {picture for key, counts in self._counts.items() if key[0] == prompt for picture in counts}
        return [self._of(prompt, picture) for picture in range(max(found, default=-1) + 1)]

    def _of(self, prompt: int, picture: int) -> Maps | None:
        columns = {"all": self._mean(prompt, picture)}
        columns |= {name: self._mean(prompt, picture, part=part) for part, name in PARTS.items()}
        columns |= {name: self._mean(prompt, picture, third=third) for third, name in enumerate(THIRDS)}
        if columns["all"] is None:
            return None
        fractions = sorted({key[2] for key in self._counts if key[0] == prompt})
        return Maps(columns, tuple(self._step_of(prompt, picture, fraction) for fraction in fractions))

    def _step_of(self, prompt: int, picture: int, fraction: float) -> Step:
        means: dict[str, Array | None] = {}
        for part, name in PARTS.items():
            key = prompt, part, fraction
            count = self._counts[key][picture] if key in self._counts else 0
            total = np.zeros(self._prompts[prompt][0], np.float32)
            if key in self._means:
                total += self._means[key][picture].cpu().numpy()
            means[name] = total / np.float32(count) if count else None
        return Step(fraction, means)

    def _mean(
        self, prompt: int, picture: int, part: str | None = None, third: int | None = None
    ) -> Array | None:
        """The mean over all layers and steps of the part and the third of the sampling; None: of all."""

        def wanted(of: int, layer_part: str, of_third: int) -> bool:
            return of == prompt and part in (None, layer_part) and third in (None, of_third)

        count = sum(
            counts[picture]
            for (of, name, fraction), counts in self._counts.items()
            if wanted(of, name, _third(fraction))
        )
        if not count or self._latents is None:
            return None
        total = np.zeros((self._prompts[prompt][0], *self._latents), np.float32)
        for (of, name, of_third, level), values in self._sums.items():
            if wanted(of, name, of_third):
                total += level.over(values[picture].cpu().numpy(), self._latents)
        return total / np.float32(count)


def _third(fraction: float) -> int:
    return min(int(fraction * 3 + _ROUNDING), 2)
