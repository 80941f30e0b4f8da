"""K' and V' of an image prompt at each layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..unit.weights import LayerWeight
from .layers import Layer
from .prompt import ImagePrompt
from .rows import COND
from .term import fill_vector, project

_PENALTY_WIDTH = 1280  # of the scalings with a penalty (ComfyUI_IPAdapter_plus)


@dataclass(frozen=True)
class Scaling:
    """What the weight scales. keys: K' too; penalty: by width / 1280; mean_only: only the mean of V' over the tokens,
    not what each token differs from it."""

    keys: bool = False
    penalty: bool = False
    mean_only: bool = False


SCALINGS = {
    "V only": Scaling(),
    "K+V": Scaling(keys=True),
    "K+V with C penalty": Scaling(keys=True, penalty=True),
    "K+mean(V) with C penalty": Scaling(keys=True, penalty=True, mean_only=True),
}


@dataclass(frozen=True)
class Projected:
    """K' and V' at one layer, each [S, heads, T, d]: V' is ``value`` times the step's factor, plus ``fixed``; K' is
    ``key``, times the factor if ``keys_too``."""

    key: Tensor
    value: Tensor
    fixed: Tensor | None
    keys_too: bool

    def at(self, factor: float) -> tuple[Tensor, Tensor]:
        """(K', V') in a step."""
        key, value = self.key, self.value
        if factor != 1.0:
            key, value = key * factor if self.keys_too else key, value * factor
        return key, value if self.fixed is None else value + self.fixed

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = (self.key, self.value, self.fixed)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


class Store(Protocol):
    """Keeps K' and V' beyond a job (cache.Cache)."""

    def get(self, key: Hashable, make: Callable[[], Projected]) -> Projected:
        """The entry at ``key``, made if it is not there."""


class KeyValue:
    """K' and V' of one prompt, projected once per layer with the layer's weight folded into V'. Only token sets of the
    pictures at hand are kept."""

    def __init__(self, prompt: ImagePrompt, store: Store | None = None) -> None:
        self.prompt = prompt
        self.projections = 0
        self.factor = 1.0  # of the step
        self._store = store if prompt.key is not None else None
        self._scaling = SCALINGS[prompt.scaling]
        self._weights: tuple[LayerWeight, ...] = ()
        self._pairs: tuple[int, ...] = (0,)
        self._local: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._cache: dict[int, Projected] = {}
        self._index: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    @property
    def count(self) -> int | None:
        """How many of K' are of the prompt's tokens, where others follow; None: all are."""
        return None if self.prompt.merge is None else self.prompt.tokens.shape[1]

    def fit(self, weights: tuple[LayerWeight, ...]) -> None:
        """The layers' weights, in file order. What was projected stays unless they differ."""
        if weights != self._weights:
            self._weights = weights
            self._cache.clear()

    def select(self, sets: Sequence[int]) -> None:
        """The token sets of a step's rows. Those of other pictures are dropped."""
        pairs = tuple(sorted({self._pair(tokens) for tokens in sets}))
        if pairs != self._pairs:
            self._pairs = pairs
            self._local.clear()
            self._cache.clear()

    def acts_in(self, layer: Layer) -> bool:
        """Whether its weight there is not 0."""
        return bool(self._weights[layer.position].weight)

    def at(self, layer: Layer, query: Tensor, sets: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(K', V' times the weight of layer and step) of each row's token set, each [rows, heads, T, d], in the query's
        dtype and on its device."""
        cached = self._cache.get(layer.position)
        if cached is None or cached.key.dtype != query.dtype or cached.key.device != query.device:
            cached = self._cache[layer.position] = self._stored(layer, query)
        key, value = cached.at(self.factor)
        rows = self._rows(sets)
        return self._gather(key, rows), self._gather(value, rows)

    def _pair(self, tokens: int) -> int:
        return tokens // 2 % (len(self.prompt.tokens) // 2)

    def _rows(self, sets: tuple[int, ...]) -> tuple[int, ...]:
        """Where these token sets are among those kept."""
        if sets not in self._local:
            self._local[sets] = tuple(2 * self._pairs.index(self._pair(s)) + s % 2 for s in sets)
        return self._local[sets]

    def _gather(self, x: Tensor, rows: tuple[int, ...]) -> Tensor:
        """These rows of x [S, heads, T, d]; without a copy where that is possible."""
        if rows == tuple(range(x.shape[0])):
            return x
        if rows.count(rows[0]) == len(rows):
            return x[rows[0] : rows[0] + 1].expand(len(rows), -1, -1, -1)
        where = (rows, x.device)
        if where not in self._index:
            self._index[where] = torch.tensor(rows, device=x.device)
        return x.index_select(0, self._index[where])

    def _stored(self, layer: Layer, query: Tensor) -> Projected:
        if self._store is None:
            return self._project(layer, query)
        prompt, weight = self.prompt, self._weights[layer.position]
        place = (layer.position, layer.heads, layer.width, self._pairs, prompt.merge and prompt.merge.zeros)
        key = (prompt.key, prompt.scaling, weight, *place, query.dtype, query.device)
        return self._store.get(key, lambda: self._project(layer, query))

    def _project(self, layer: Layer, query: Tensor) -> Projected:
        weight, scaling = self._weights[layer.position], self._scaling
        to_k, to_v = self.prompt.adapter.weights(layer.position)
        self.projections += 1
        tokens, token_weights = self._selected(query.device)
        scale = weight.weight * (layer.width / _PENALTY_WIDTH if scaling.penalty else 1.0)
        # K' and V' are linear in their tokens, so scaling those scales them, in float32.
        key = project(tokens * scale if scaling.keys else tokens, to_k, layer.heads, query)
        weighted = tokens * token_weights[..., None]
        fixed: Tensor | None = None
        if scaling.mean_only:
            mean = weighted.mean(1, keepdim=True)
            fixed = self._filled(project(weighted - mean, to_v, layer.heads, query))
            weighted = mean.expand_as(weighted)
        value = self._filled(project(weighted * scale, to_v, layer.heads, query))
        key = self._filled(key)
        if weight.precise:
            key, value = key[COND::2].repeat_interleave(2, 0), _precise(value)
            fixed = None if fixed is None else _precise(fixed)
        return Projected(key, value, fixed, scaling.keys)

    def _filled(self, x: Tensor) -> Tensor:
        """K' or V' as attention takes it. Tokens of zeros forbid copies of the others."""
        return fill_vector(x) if self.prompt.merge is None else self.prompt.merge.padded(x)

    def _selected(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens [S, T, context] and their weights [T] or [S, T] of the pictures at hand."""
        tokens, weights = self.prompt.tokens, self.prompt.token_weights
        if len(self._pairs) < len(tokens) // 2:
            rows = [row for pair in self._pairs for row in (2 * pair, 2 * pair + 1)]
            tokens, weights = tokens[rows], weights if weights.dim() == 1 else weights[rows]
        return tokens.to(device), weights.to(device)


def _precise(value: Tensor) -> Tensor:
    """Zero for cond rows; uncond rows get the cond values."""
    cond = value[COND::2]
    return torch.stack([torch.zeros_like(cond), cond], 1).flatten(0, 1)
