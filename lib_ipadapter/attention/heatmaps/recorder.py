"""Heat maps: where each reference acted, recorded while a picture is sampled, from the q and K' at hand.

A layer gives Z + T (arXiv 2308.06721, eq. 5): Z is the output of the text branch, T the unit's term with its weight,
layer and step weights and region. At query n, for reference r of the unit:

    fraction_r(n) = mean over heads of the sum over r's tokens of Softmax(QK'ᵀ/√d)
    map_r(n) = fraction_r(n) · |T(n)| / (|T(n)| + |Z(n)|)

A map is the mean over layers and steps, with 0 where the unit did not act. Only cond rows count. Calls that cannot be
laid over the picture (tiles, attention that runs twice) are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...encoders.precision import without_autocast
from ..layers import Layer
from ..prompt import ImagePrompt, acting
from ..region import Size, depth_of, halved
from ..session import StepInfo
from ..term import split_heads

PARTS = {"input": "in", "middle": "mid", "output": "out"}
THIRDS = ("early", "middle", "late")
COLUMNS = ("all", *PARTS.values(), *THIRDS)
_SCORES = 2**24  # elements of QK'ᵀ at a time
_ROUNDING = 1e-6  # of fractions: 1/3 is the middle, however it was divided

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """A step's fraction of the sampling and, for each part of the UNet (PARTS), the means of its maps [references],
    None if the part has no layer."""

    fraction: float
    means: dict[str, Array | None]


@dataclass(frozen=True)
class Maps:
    """The maps of one prompt in one picture: for each of COLUMNS a map [references, height, width] over the latents, in
    0..1, None if there was no such layer or step; and their means step by step."""

    columns: dict[str, Array | None]
    steps: tuple[Step, ...] = ()

    @property
    def top(self) -> float:
        """The largest value."""
        return max(float(values.max()) for values in self.columns.values() if values is not None)

    @property
    def bottom(self) -> float:
        """The smallest value."""
        return min(float(values.min()) for values in self.columns.values() if values is not None)


@dataclass(frozen=True)
class Level:
    """The tokens of a layer: ``size`` height and width, those of the latents halved ``depth`` times, rounding up."""

    size: Size
    depth: int

    @classmethod
    def of(cls, latents: Size, tokens: int) -> Level | None:
        """The level of such latents with so many tokens."""
        depth = depth_of(latents, tokens)
        return None if depth is None else cls(halved(latents, depth), depth)

    def over(self, values: Array, latents: Size) -> Array:
        """Values [R, tokens] as [R, H, W]: each latent gets the value of the token that covers it."""
        fine = values.reshape(-1, *self.size).repeat(2**self.depth, 1).repeat(2**self.depth, 2)
        return fine[:, : latents[0], : latents[1]]


def fractions(query: Tensor, key: Tensor, references: int, tokens: int) -> Tensor:
    """[B, references, N]: the fraction of the attention of query [B, N, heads·d] on key [B, heads, T, d] that each
    reference's tokens get, mean over heads. T is a multiple of ``tokens`` (term.fill_vector), the references' tokens
    side by side."""
    heads, count = key.shape[1:3]
    at_a_time = max(1, _SCORES // (query.shape[0] * heads * count))
    with without_autocast(query.device):
        parts = [
            _fractions(split_heads(part, heads).float(), key.float(), references, tokens)
            for part in query.split(at_a_time, dim=1)
        ]
    return torch.cat(parts, dim=2)


def _fractions(query: Tensor, key: Tensor, references: int, tokens: int) -> Tensor:
    attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    grouped = attention.unflatten(-1, (-1, references, tokens // references)).sum((-3, -1))
    return grouped.mean(1).transpose(1, 2)


@dataclass(frozen=True)
class _Term:
    """A term that waits for Z: its cond rows in the call and their places in the step, fractions [rows, R, N] (None:
    one reference, all of it), |T| [rows, N], and the term's batch and tokens."""

    rows: Tensor
    places: tuple[int, ...]
    level: Level
    fractions: Tensor | None
    length: Tensor
    shape: Size


@dataclass(frozen=True)
class _LayerMaps:
    """Maps [rows, R, N] of one layer in the running step, and the rows' places in it."""

    places: tuple[int, ...]
    level: Level
    values: Tensor


@dataclass
class Accumulator:
    """Sums the maps of one picture over the layers of one part and the steps of one third, per level since levels
    differ in size; and the maps' means step by step. All maps of all steps would be too much to keep."""

    sums: dict[Level, Tensor] = field(default_factory=dict)
    means: dict[float, Tensor] = field(default_factory=dict)  # by fraction of the sampling
    counts: dict[float, float] = field(default_factory=dict)

    def add(self, fraction: float, level: Level, values: Tensor, weight: float) -> None:
        """A map [R, N], times ``weight``."""
        for sums, key, value in ((self.sums, level, values), (self.means, fraction, values.mean(-1))):
            if key not in sums:
                sums[key] = torch.zeros_like(value)  # type: ignore[index]
            sums[key].add_(value, alpha=weight)  # type: ignore[index]
        self.count(fraction, weight)

    def count(self, fraction: float, weight: float) -> None:
        """A map counts; without ``add``, as 0 everywhere."""
        self.counts[fraction] = self.counts.get(fraction, 0.0) + weight

    def total(self, references: int, latents: Size) -> Array:
        """The sum over the latents [R, H, W]."""
        total = np.zeros((references, *latents), np.float32)
        for level, values in self.sums.items():
            total += level.over(values.cpu().numpy(), latents)
        return total

    def mean_at(self, fraction: float, references: int) -> Array:
        """The mean of the maps in one step [R]."""
        total = np.zeros(references, np.float32)
        if fraction in self.means:
            total += self.means[fraction].cpu().numpy()
        return total / np.float32(self.counts[fraction])


_Key = tuple[int, int, str, int]  # prompt, picture, part of the UNet, third of the sampling


class Recorder:
    """``session.Observer``: records the maps of one pass over one batch.

    prompts: of each, the number of references with maps (0: none), and of tokens. ``left_out`` counts what could not be
    recorded; it is complete after ``maps``.
    """

    def __init__(self, prompts: Sequence[tuple[int, int]]) -> None:
        self._prompts = tuple(prompts)
        self._layers: tuple[Layer, ...] = ()
        self._acts: Sequence[Callable[[Layer], bool]] = ()
        self._index: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self.clear()

    @classmethod
    def of(cls, prompts: Sequence[ImagePrompt]) -> Recorder | None:
        """For the prompts of a session; None if none of them asks for maps."""
        maps = [(prompt.maps, prompt.tokens.shape[1]) for prompt in acting(prompts)]
        return cls(maps) if any(references for references, _ in maps) else None

    def clear(self) -> None:
        """Forgets everything recorded."""
        self.left_out = 0
        self._parts: dict[_Key, Accumulator] = {}
        self._pass: object = None
        self._latents: Size | None = None
        self._pictures: dict[int, int] = {}
        self._fraction = 0.0
        self._whole = True
        self._waiting: dict[int, dict[int, _Term]] = {}
        self._step: dict[tuple[int, Layer], list[_LayerMaps]] = {}

    def attached(self, layers: Sequence[Layer], acts: Sequence[Callable[[Layer], bool]]) -> None:
        """The UNet's layers; of each prompt, whether it acts in one."""
        self._layers, self._acts = tuple(layers), tuple(acts)

    def step(self, info: StepInfo) -> None:
        """A step begins. The maps are those of the last pass."""
        self._commit()
        pictures = range(len(info.rows)) if info.pictures is None else info.pictures
        known = len(pictures) == len(info.rows)
        this_pass = (info.hires, info.size, len(info.rows))
        if this_pass != self._pass:
            self.clear()
            self._pass, self._latents = this_pass, info.size
        self.left_out += not known
        self._pictures = dict(zip(info.rows, pictures, strict=True)) if known else {}
        self._fraction = info.fraction
        for prompt, layer in self._recorded():
            if not info.acting[prompt] or not self._acts[prompt](layer):
                for picture in set(self._pictures.values()):
                    self._part(prompt, picture, layer).count(self._fraction, 1)

    def _recorded(self) -> Iterator[tuple[int, Layer]]:
        for prompt, (references, _) in enumerate(self._prompts):
            if references:
                yield from ((prompt, layer) for layer in self._layers)

    def _part(self, prompt: int, picture: int, layer: Layer) -> Accumulator:
        key = prompt, picture, layer.part, _third(self._fraction)
        return self._parts.setdefault(key, Accumulator())

    def call(self, latents: Size, whole: bool) -> None:
        """The UNet is called with latents of this size; whole: they are all of the step's."""
        self._waiting.clear()
        self._latents = self._latents or (latents if whole else None)
        self._whole = whole and latents == self._latents

    def term(
        self, prompt: int, layer: Layer, places: tuple[int, ...], query: Tensor, key: Tensor, term: Tensor
    ) -> None:
        """A prompt's term, whose maps can be computed when Z is known. Rows that are not the step's do not count."""
        cond = tuple(row for row, place in enumerate(places) if place in self._pictures)
        if not cond:
            return
        level = Level.of(self._latents, query.shape[1]) if self._latents and self._whole else None
        if level is None or len(set(places)) < len(places):
            self.left_out += 1
            return
        rows, (references, tokens) = self._rows(cond, query.device), self._prompts[prompt]
        with torch.no_grad():
            split = fractions(query[rows], key[rows], references, tokens) if references > 1 else None
            length = torch.linalg.vector_norm(term[rows], dim=-1, dtype=torch.float32)
        self._waiting.setdefault(layer.position, {})[prompt] = _Term(
            rows, tuple(places[row] for row in cond), level, split, length, (term.shape[0], term.shape[1])
        )

    def output(self, layer: Layer, hidden: Tensor) -> None:
        """Z [B, N, width] of a layer."""
        for prompt, waiting in self._waiting.pop(layer.position, {}).items():
            if hidden.shape[:2] != waiting.shape:
                self.left_out += 1
                continue
            with torch.no_grad():
                text = torch.linalg.vector_norm(hidden[waiting.rows], dim=-1, dtype=torch.float32)
                strength = (waiting.length / (waiting.length + text)).nan_to_num_(0.0)[:, None]
                values = strength if waiting.fractions is None else waiting.fractions * strength
            maps = _LayerMaps(waiting.places, waiting.level, values)
            self._step.setdefault((prompt, layer), []).append(maps)

    def _rows(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        if (rows, device) not in self._index:
            self._index[rows, device] = torch.tensor(rows, device=device)
        return self._index[rows, device]

    def _commit(self) -> None:
        """Adds up the step's maps. A layer that saw a row twice attends to more than the picture."""
        per_picture = Counter(self._pictures.values())
        for (prompt, layer), parts in self._step.items():
            places = [place for part in parts for place in part.places]
            if len(set(places)) < len(places):
                self.left_out += 1
                continue
            for part in parts:
                for place, values in zip(part.places, part.values, strict=True):
                    picture = self._pictures[place]
                    # Of sub-prompts (AND), the mean.
                    accumulator = self._part(prompt, picture, layer)
                    accumulator.add(self._fraction, part.level, values, 1 / per_picture[picture])
        self._step.clear()
        self._waiting.clear()

    def maps(self, prompt: int) -> list[Maps | None]:
        """The prompt's maps in each picture of the batch; None where nothing was recorded."""
        self._commit()
        last = max((picture for of, picture, _, _ in self._parts if of == prompt), default=-1)
        return [self._maps(prompt, picture) for picture in range(last + 1)]

    def _maps(self, prompt: int, picture: int) -> Maps | None:
        columns = {"all": self._mean(prompt, picture)}
        columns |= {name: self._mean(prompt, picture, part=part) for part, name in PARTS.items()}
        columns |= {name: self._mean(prompt, picture, third=third) for third, name in enumerate(THIRDS)}
        if columns["all"] is None:
            return None
        steps = sorted({x for key, part in self._parts.items() if key[0] == prompt for x in part.counts})
        return Maps(columns, tuple(self._step_of(prompt, picture, fraction) for fraction in steps))

    def _step_of(self, prompt: int, picture: int, fraction: float) -> Step:
        references = self._prompts[prompt][0]
        means: dict[str, Array | None] = {}
        for part, name in PARTS.items():
            of = self._parts.get((prompt, picture, part, _third(fraction)))
            seen = of is not None and of.counts.get(fraction)
            means[name] = of.mean_at(fraction, references) if of and seen else None
        return Step(fraction, means)

    def _mean(self, prompt: int, picture: int, part: str | None = None, third: int | None = None) -> Array | None:
        """The mean over the layers and steps of a part and a third; None: of all."""
        wanted = [
            accumulator
            for (of, its, layer_part, its_third), accumulator in self._parts.items()
            if (of, its) == (prompt, picture) and part in (None, layer_part) and third in (None, its_third)
        ]
        count = sum(sum(accumulator.counts.values()) for accumulator in wanted)
        if not count or self._latents is None:
            return None
        total = np.zeros((self._prompts[prompt][0], *self._latents), np.float32)
        for accumulator in wanted:
            total += accumulator.total(self._prompts[prompt][0], self._latents)
        return total / np.float32(count)


def _third(fraction: float) -> int:
    return min(int(fraction * 3 + _ROUNDING), 2)
