"""One generation: image prompts, their K' and V', the rows, the hooks. No globals.

    session = Session(prompts)
    with session.attached(unet):
        for each denoiser step:
            session.begin_step([0] * n_cond + [1] * n_uncond, fraction)
            ... the host calls the UNet ...
            session.end_step()

Between ``end_step`` and ``begin_step`` the hooks are inert. The base model's weights are never touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..errors import RowsError
from ..unit.weights import ALWAYS, EVENLY, Curve, LayerRule, LayerWeight
from .heatmaps.recorder import Recorder
from .hooks import Hooks
from .layers import Layer, check_fit, cross_attention_layers, layer_weights
from .region import WHOLE, Box, Region
from .rows import Rows
from .term import fill_vector, image_attention, project

COND, UNCOND = 0, 1
Size = tuple[int, int]  # height, width
Tiles = Callable[[Size, Size], Sequence[Box]]
_PENALTY_WIDTH = 1280  # of the scalings that know it (ComfyUI_IPAdapter_plus)
_ROUNDING = 1e-6  # of fractions: 3 calls of 10 is 0.3, however it was divided


@dataclass(frozen=True)
class Timing:
    """When a prompt acts: between the fractions ``start`` and ``end`` of the sampling (end = 1: to the last call), λ
    times ``curve``, times ``first`` in the first pass and ``hires`` in that of hires fix."""

    start: float = 0.0
    end: float = 1.0
    curve: Curve = ALWAYS
    first: float = 1.0
    hires: float = 1.0

    def factor_at(self, fraction: float, hires: bool = False) -> float:
        """λ's factor in a call at ``fraction`` 0..1 of the sampling; 0: it does not act."""
        begun = fraction > self.start - _ROUNDING
        ended = self.end < 1.0 and fraction > self.end - _ROUNDING
        if not begun or ended:
            return 0.0
        return self.curve.at(fraction) * (self.hires if hires else self.first)


_ALL_ALONG = Timing()


@dataclass(frozen=True)
class ImagePrompt:
    """One unit, ready to run.

    tokens: [S, T, context] float32, the token sets (COND, UNCOND), or such a pair for each of several pictures to
    draw; token_weights: [T] or [S, T], each token's share of V', the weight of the picture it comes from;
    weight: λ; rule: λ over the layers; timing: λ over the steps; region: where in the picture, None for
    everywhere; scaling: what λ scales, one of unit.SCALINGS; label: how errors name it; maps: of how many
    references, side by side in the tokens, it is recorded where they act, 0 for not at all.
    """

    adapter: Adapter
    tokens: Tensor
    token_weights: Tensor
    weight: float = 1.0
    rule: LayerRule = EVENLY
    timing: Timing = _ALL_ALONG
    region: Region | None = None
    scaling: str = "V only"
    label: str = "the adapter"
    maps: int = 0


@dataclass(frozen=True)
class Projected:
    """K' and V' of one prompt at one layer, each [S, heads, T, d]: V' = ``value`` times the step's factor, plus what
    does not depend on it; K' times the factor where keys are scaled too."""

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


def _precise(value: Tensor) -> Tensor:
    """Nothing for cond, cond's for uncond."""
    cond = value[COND::2]
    return torch.stack([torch.zeros_like(cond), cond], 1).flatten(0, 1)


class _KeyValue:
    """K' and V' of one prompt at each layer, projected once, the layer's weight folded into V'."""

    def __init__(self, prompt: ImagePrompt) -> None:
        self.prompt = prompt
        self.projections = 0
        self.factor = 1.0  # of the step that is running
        self._weights: tuple[LayerWeight, ...] = ()
        self._cache: dict[int, Projected] = {}

    def fit(self, weights: tuple[LayerWeight, ...]) -> None:
        """The layers' weights, by place in file order. What was projected stays unless they differ."""
        if weights != self._weights:
            self._weights = weights
            self._cache.clear()

    def acts_in(self, layer: Layer) -> bool:
        """Whether its weight there is not 0."""
        return bool(self._weights[layer.position].weight)

    def at(self, layer: Layer, query: Tensor) -> tuple[Tensor, Tensor]:
        """(K', V' times the weight of layer and step), each [S, heads, T, d], in the query's dtype and on its
        device."""
        held = self._cache.get(layer.position)
        if held is None or held.key.dtype != query.dtype or held.key.device != query.device:
            held = self._cache[layer.position] = self._project(layer, query)
        return held.at(self.factor)

    def _project(self, layer: Layer, query: Tensor) -> Projected:
        prompt, weight = self.prompt, self._weights[layer.position]
        to_k, to_v = prompt.adapter.weights(layer.position)
        self.projections += 1
        tokens, scale = prompt.tokens.to(query.device), weight.weight
        if prompt.scaling.endswith("penalty"):
            scale *= layer.width / _PENALTY_WIDTH
        keys_too = prompt.scaling != "V only"
        # K' and V' are linear in their tokens, so scaling those scales them, in float32.
        key = project(tokens * scale if keys_too else tokens, to_k, layer.heads, query)
        tokens = tokens * prompt.token_weights.to(query.device)[..., None]
        fixed: Tensor | None = None
        if prompt.scaling.startswith("K+mean"):
            mean = tokens.mean(1, keepdim=True)
            fixed = fill_vector(project(tokens - mean, to_v, layer.heads, query))
            tokens = mean.expand_as(tokens)
        value = fill_vector(project(tokens * scale, to_v, layer.heads, query))
        key = fill_vector(key)
        if weight.precise:
            key, value = key[COND::2].repeat_interleave(2, 0), _precise(value)
            fixed = None if fixed is None else _precise(fixed)
        return Projected(key, value, fixed, keys_too)


class _Row(NamedTuple):
    """Of a UNet call: its place in the step, its token set, the part of the picture that the step's latents show, and
    the tile of the latents that the call shows."""

    place: int
    tokens: int
    box: Box
    tile: Box = WHOLE


class Session:
    """The image prompts of one generation, on whatever UNet the host is sampling with.

    tiles: of a UNet call with latents of another size (the second) than the step's (the first), what part of the
    latents each of its tiles shows, () where that is not known.
    """

    def __init__(self, prompts: Sequence[ImagePrompt], tiles: Tiles = lambda whole, tile: ()) -> None:
        self.prompts = tuple(p for p in prompts if p.weight)  # λ = 0 is the base model
        self._kv = [_KeyValue(p) for p in self.prompts]
        self._rows: Rows[_Row] = Rows()
        self._tiles = tiles
        self._active: list[_KeyValue] = []
        self._size: Size | None = None  # of the step's latents; None: of each call's
        self._called = (0, 0)
        self._hooks: Hooks | None = None
        self._index: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        maps = [(p.maps, p.tokens.shape[1]) for p in self.prompts]
        self.recorder = Recorder(maps) if any(p.maps for p in self.prompts) else None

    @property
    def projections(self) -> int:
        """How many times K' and V' of a layer were projected, for tests and benchmarks."""
        return sum(kv.projections for kv in self._kv)

    @property
    def unet(self) -> nn.Module | None:
        """The UNet that the hooks are on, or None."""
        return self._hooks.unet if self._hooks else None

    @contextlib.contextmanager
    def attached(self, unet: nn.Module) -> Iterator[None]:
        """The hooks are on ``unet`` inside, and off again however the block is left."""
        self.attach(unet)
        try:
            yield
        finally:
            self.detach()

    def attach(self, unet: nn.Module) -> None:
        """Puts the hooks on ``unet``, and off the UNet where they were. Raises WrongBase or
        UnsupportedModel, and then nothing is attached."""
        if self.unet is unet:
            return
        self.detach()
        if not self.prompts:
            return
        layers = cross_attention_layers(unet)
        for prompt in self.prompts:
            check_fit(prompt.adapter.spec, layers, prompt.label)
        weights = [layer_weights(prompt.rule, prompt.weight, layers) for prompt in self.prompts]
        for kv, held in zip(self._kv, weights):
            kv.fit(held)
        if self.recorder:
            self.recorder.fit(layers, [kv.acts_in for kv in self._kv])
        self._hooks = Hooks(unet, layers, self, self.recorder.see if self.recorder else None)

    def detach(self) -> None:
        """Takes the hooks off. The projected K' and V' stay: another model of the same shape reuses them."""
        self.end_step()
        if self._hooks:
            self._hooks.remove()
            self._hooks = None

    def begin_step(
        self,
        sets: Sequence[int],
        fraction: float,
        hires: bool = False,
        size: Size | None = None,
        boxes: Sequence[Box] = (WHOLE,),
        pictures: Sequence[int] | None = None,
    ) -> None:
        """The UNet calls that follow hold these rows: the token set of each, modulo the number that a prompt has;
        picture k's are 2k + COND and 2k + UNCOND. ``fraction`` 0..1 of the sampling, and whether it is the
        pass of hires fix, decide which prompts act and how strongly.
        size: height and width of the latents; boxes: what part of the picture each row shows, or one for all of them.
        Regions follow both. pictures: which picture of the batch each cond row belongs to, for the maps; by default
        one row each."""
        boxes = boxes if len(boxes) > 1 else [*boxes] * len(sets)
        self._rows.begin([_Row(*row) for row in zip(range(len(sets)), sets, boxes, strict=True)])
        self._size = size
        for kv in self._kv:
            kv.factor = kv.prompt.timing.factor_at(fraction, hires)
        self._active = [kv for kv in self._kv if kv.factor]
        if self.recorder and self._hooks:
            rows = [i for i, held in enumerate(sets) if held % 2 == COND]
            acting = [bool(kv.factor) for kv in self._kv]
            self.recorder.step(rows, pictures, fraction, hires, size, acting)

    def chunk(self, rows: int) -> None:
        """The next ``rows`` of the step's rows go to the host's inner model. Optional: see Rows."""
        if self._active:
            self._rows.chunk(rows)

    def end_step(self) -> None:
        """The hooks are inert until the next step."""
        self._active = []
        self._rows.begin(())

    def call(self, sample: Tensor) -> None:
        """Hooks: the UNet is called. Raises RowsError where rows or a region cannot be followed."""
        if not self._active:
            return
        self._rows.call(sample.shape[0])
        height, width = sample.shape[-2:]
        self._called = (height, width)
        if self.recorder:
            self.recorder.call(self._called, self._size in (None, self._called))
        if self._size not in (None, self._called) and any(kv.prompt.region for kv in self._active):
            self._follow_tiles(self._size)

    def _follow_tiles(self, size: Size) -> None:
        """The rows show tiles of latents of this size. Raises RowsError."""
        tiles = self._tiles(size, self._called)
        if tiles:
            self._rows.tile(tiles, lambda row, tile: row._replace(tile=tile))
        else:
            (height, width), (down, across) = self._called, size
            raise RowsError(
                f"the UNet was called with latents of {width} x {height}, expected {across} x {down}: "
                "another extension cuts the picture into tiles, which a region mask cannot follow. Disable it, or "
                "take the mask out"
            )

    def term(self, layer: Layer, hidden: Tensor, query: Tensor) -> Tensor | None:
        """Hooks: the sum of all acting prompts' terms [B, N, width], or None."""
        total: Tensor | None = None
        for kv in self._active:
            if not kv.acts_in(layer):
                continue
            rows = self._rows.of(hidden)
            sets = tuple(row.tokens for row in rows)
            key, value = kv.at(layer, query)
            key = self._gather(key, sets)
            term = image_attention(query, key, self._gather(value, sets))
            if kv.prompt.region is not None:
                places = [(row.box, row.tile) for row in rows]
                term.mul_(kv.prompt.region.of_rows(self._called, term.shape[1], term, places))
            if kv.prompt.maps and self.recorder:
                held = tuple(row.place for row in rows)
                self.recorder.term(self._kv.index(kv), layer, held, query, key, term)
            total = term if total is None else total.add_(term)
        return total

    def _gather(self, x: Tensor, sets: tuple[int, ...]) -> Tensor:
        """Rows ``sets`` of x [S, heads, T, d], counted modulo S; without a copy where that can be."""
        if max(sets) >= x.shape[0]:
            sets = tuple(row % x.shape[0] for row in sets)
        if sets == tuple(range(x.shape[0])):
            return x
        if sets.count(sets[0]) == len(sets):
            return x[sets[0] : sets[0] + 1].expand(len(sets), -1, -1, -1)
        where = (sets, x.device)
        if where not in self._index:
            self._index[where] = torch.tensor(sets, device=x.device)
        return x.index_select(0, self._index[where])
