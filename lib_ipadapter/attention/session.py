"""One generation: its image prompts, their K' and V', and the hooks. No globals.

    session = Session(prompts)
    with session.attached(unet):
        for each denoiser step:
            session.begin_step([COND] * n_cond + [UNCOND] * n_uncond, fraction)
            ... the host calls the UNet ...
            session.end_step()

Before the first step and after ``rest`` the hooks do nothing. What they do between ``end_step`` and the next step is up
to the row source. The base model's weights are never touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..errors import IPAdapterError, RowsError
from .beside import UNetCall
from .companions import Companions
from .hooks import Hooks
from .keyvalue import KeyValue, Store
from .layers import Layer, check_fit, cross_attention_layers, layer_weights
from .lora import loras
from .lowrank import Place
from .prompt import ImagePrompt, Timing, acting
from .region import WHOLE, Box, Size
from .rows import COND, UNCOND, CursorRows, Row, RowSource, rows_of_view, tiled
from .same import same_latents, same_pass
from .term import Term, image_attention

__all__ = ["COND", "UNCOND", "ImagePrompt", "Observer", "Session", "StepInfo", "Timing"]

Tiles = Callable[[Size, Size], Sequence[Box]]


@dataclass(frozen=True)
class StepInfo:
    """What an observer learns of a step.

    rows: places of the cond rows; pictures: index in the batch of each of them, None: one row per picture; fraction:
    0..1 of the sampling; hires: in the pass of hires fix; size: of the latents, None if not known; acting: of each
    prompt, whether it acts.
    """

    rows: Sequence[int]
    pictures: Sequence[int] | None
    fraction: float
    hires: bool
    size: Size | None
    acting: Sequence[bool]


class Observer(Protocol):
    """Follows a session without changing anything, such as heat maps do."""

    def attached(self, layers: Sequence[Layer], acts: Sequence[Callable[[Layer], bool]]) -> None:
        """The session is attached to a UNet with these layers; acts: of each prompt, whether it acts in a layer."""

    def step(self, info: StepInfo) -> None:
        """A step begins."""

    def call(self, latents: Size, whole: bool) -> None:
        """The UNet is called with latents of this size; whole: they are all of the step's."""

    def term(
        self, prompt: int, layer: Layer, places: tuple[int, ...], query: Tensor, key: Tensor, term: Tensor
    ) -> None:
        """The term T [B, N, width] of a prompt, from query [B, N, width] and key [B, heads, T, d]. places: of the rows
        in the step, rows.EXTRA for rows that are not the step's."""

    def output(self, layer: Layer, hidden: Tensor) -> None:
        """The layer's own attention output Z [B, N, width]."""


class Session:
    """The image prompts of one generation, on the UNet with which the host is sampling.

    tiles: (size of the step's latents, size of a UNet call's latents) to the part of the latents that each tile of the
    call shows, () if unknown; rows: where the rows of a call come from; observer: for prompts with maps; store: keeps
    K' and V' beyond this session.
    """

    def __init__(
        self,
        prompts: Sequence[ImagePrompt],
        tiles: Tiles = lambda whole, tile: (),
        rows: RowSource | None = None,
        observer: Observer | None = None,
        store: Store | None = None,
    ) -> None:
        self.prompts = acting(prompts)
        self.rows: RowSource = rows or CursorRows()
        self.observer = observer
        self.error: IPAdapterError | None = None  # the last one raised in a hook, where a host may swallow it
        self.acted: set[int] = set()  # ids of the prompts of which a term was computed, and of what ran beside
        self._kv = [KeyValue(prompt, store) for prompt in self.prompts]
        self._tiles = tiles
        self._fitted: list[KeyValue] = []  # those that act in the pass for which the hooks are attached
        self._active: list[KeyValue] = []  # those that act in the step
        self._current: tuple[Row, ...] | None = None  # rows of the running call; None: not to be changed
        self._foreign = False  # the running pass through the UNet's blocks is of another picture
        self._replaced = False  # it has the call's text, but other latents
        self._asked: dict[int, tuple[Row, ...]] = {}  # of it, those of the last to_q by the layer's number, for LoRAs
        self._call: tuple[Tensor, Tensor | None] | None = None  # its latents and text
        self._size: Size | None = None  # of the step's latents; None: of each call's
        self._called: Size = (0, 0)
        self._fraction = 0.0
        self._hooks: Hooks | None = None
        self._beside = self._companions(())
        self._target: nn.Module | None = None  # the UNet to which it is attached, with hooks if any prompt acts

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

    def attach(self, unet: nn.Module, hires: bool = False) -> None:
        """Puts the hooks on ``unet`` for the prompts that act in this pass, and off the UNet where they were; the other
        prompts may be for another base. Raises WrongBase or UnsupportedModel, and then nothing is attached."""
        fitted = [kv for kv in self._kv if kv.prompt.timing.of_pass(hires)]
        if self._target is unet and self._fitted == fitted:
            return
        self.detach()
        if not fitted:
            self._target, self._fitted = unet, fitted
            return
        layers = cross_attention_layers(unet)
        for kv in fitted:
            check_fit(kv.prompt.adapter.spec, layers, kv.prompt.label)
        weights = [layer_weights(kv.prompt.rule, kv.prompt.weight, layers) for kv in fitted]
        for kv, its in zip(fitted, weights, strict=True):
            kv.fit(its)
        self._fitted = fitted
        if self.observer:
            self.observer.attached(layers, [kv.acts_in if kv in fitted else _nowhere for kv in self._kv])
        output = self.observer.output if self.observer else None
        additions = loras(fitted, lambda: () if self._current is None or self._foreign else self._active, self._mask_of)
        self._hooks = Hooks(unet, layers, self, output, additions)
        self._target = unet
        self._beside = self._companions(fitted)
        try:
            self._beside.attach(unet, layers)
        except BaseException:
            self.detach()
            raise

    def _companions(self, fitted: Sequence[KeyValue]) -> Companions:
        def active() -> Sequence[KeyValue]:
            return () if self._current is None or self._foreign or self._replaced else self._active

        return Companions(fitted, active, self._noting, self.acted)

    def detach(self) -> None:
        """Takes the hooks off. The projected K' and V' stay: another model of the same shape reuses them."""
        self.rest()
        self._target = None
        if self._hooks:
            self._hooks.remove()
            self._hooks = None
        self._beside.remove()

    def begin_step(
        self,
        sets: Sequence[int],
        fraction: float,
        hires: bool = False,
        size: Size | None = None,
        boxes: Sequence[Box] = (WHOLE,),
        pictures: Sequence[int] | None = None,
    ) -> None:
        """A denoiser step begins.

        sets: the token set of each row, 2k + COND or 2k + UNCOND for picture k, modulo a prompt's pictures; fraction:
        0..1 of the sampling; hires: in the pass of hires fix; size: height and width of the latents; boxes: the part of
        the picture that each row shows, or one for all; pictures: index in the batch of each cond row, by default one
        row each. Raises as ``attach`` does if other prompts act in this pass than in the last one.
        """
        if self._target is not None:
            self.attach(self._target, hires)
        cond = [i for i, tokens in enumerate(sets) if tokens % 2 == COND]
        boxes = boxes if len(boxes) > 1 else [*boxes] * len(sets)
        rows = [Row(i, *row) for i, row in enumerate(zip(sets, boxes, strict=True))]
        for i, picture in zip(cond, pictures or (), strict=False):
            rows[i] = rows[i]._replace(picture=picture)
        self.rows.begin(rows)
        self._size, self._fraction = size, fraction
        for kv in self._kv:
            kv.select(sets)
            kv.factor = kv.prompt.timing.factor_at(fraction, hires)
        self._active = [kv for kv in self._kv if kv.factor]
        if self.observer:
            acts = [bool(kv.factor) for kv in self._kv]
            self.observer.step(StepInfo(cond, pictures, fraction, hires, size, acts))

    def end_step(self) -> None:
        """The step's announced calls are over. Whether later ones are followed is up to the row source."""
        self.rows.begin(())
        self._current = self._call = self._beside.call = None

    def pause(self) -> None:
        """No call follows for a while: what runs beside the UNet may leave the device."""
        self._beside.pause()

    def resume(self) -> None:
        """Calls follow soon, and the host has not filled the device yet."""
        self._beside.resume()

    def rest(self) -> None:
        """The hooks do nothing until the next step."""
        self.end_step()
        self._active = []

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Hooks: the UNet is called. Raises RowsError where rows or a region cannot be followed."""
        self._current, self._foreign, self._replaced = None, False, False
        self._asked.clear()
        self._beside.call = None
        if not self._active:
            return
        with self._noting():
            self._follow(latents, kwargs)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except IPAdapterError as error:
            self.error = error
            raise

    def _follow(self, latents: Tensor, kwargs: Mapping[str, Any]) -> None:
        self._current = self.rows.call(latents, kwargs)
        if self._current is None:
            return
        self._call = latents, kwargs.get("context")
        self._called = (latents.shape[-2], latents.shape[-1])
        if self.observer:
            self.observer.call(self._called, self._size in (None, self._called))
        placed = any(kv.prompt.region or kv.prompt.beside for kv in self._active)
        if self._size not in (None, self._called) and placed:
            self._current = self._on_tiles(self._current, self._size)
        self._beside.call = UNetCall(latents, kwargs, self._current, self._size or self._called, self._fraction)

    def enter(self, hidden: Tensor, context: Tensor | None) -> None:
        """Hooks: a pass through the UNet's blocks begins. One with other pictures and other text than the call's
        (FABRIC's, for liked pictures) is left alone. One with other latents only (ControlNet's reference-only) gets the
        terms, but nothing of what runs beside the UNet, which was computed from the call's latents."""
        if self._call is not None:
            self._foreign = not same_pass(*self._call, hidden, context)
            self._replaced = self._beside.any and not self._foreign and not same_latents(self._call[0], hidden)

    def _on_tiles(self, rows: tuple[Row, ...], size: Size) -> tuple[Row, ...]:
        """The rows, which show tiles of latents of this size. Raises RowsError."""
        tiles = self._tiles(size, self._called)
        if tiles:
            return tiled(rows, tiles)
        (height, width), (down, across) = self._called, size
        raise RowsError(
            f"the UNet was called with latents of {width} x {height}, expected {across} x {down}: another extension "
            "cuts the picture into tiles, which a region mask or a pose cannot follow. Disable it, remove the mask, or "
            "set pose_weight to 0"
        )

    def terms(self, layer: Layer, hidden: Tensor, query: Tensor, grid: Size | None) -> Sequence[Term]:
        """Hooks: the terms of all prompts that act, those that are summed as one."""
        if self._current is None or self._foreign:
            return ()
        total: Tensor | None = None
        others: list[Term] = []
        for kv in self._active:
            if not kv.acts_in(layer):
                continue
            with self._noting():
                term = self._term(kv, layer, hidden, query, grid)
            if term.merge is not None:
                others.append(term)
            else:
                total = term.value if total is None else total.add_(term.value)
        return others if total is None else [Term(total), *others]

    def _term(self, kv: KeyValue, layer: Layer, hidden: Tensor, query: Tensor, grid: Size | None) -> Term:
        """One prompt's term."""
        assert self._current is not None
        self.acted.add(id(kv.prompt))
        rows = rows_of_view(self._current, hidden)
        key, value = kv.at(layer, query, tuple(row.tokens for row in rows))
        term, mask = image_attention(query, key, value), None
        if kv.prompt.region is not None:
            places = [(row.box, row.tile) for row in rows]
            mask = kv.prompt.region.of_rows(self._called, term.shape[1], term, places, grid)
        how = kv.prompt.merge
        merge = None if how is None else how.merge(query, key, mask)
        if mask is not None and merge is None:
            term.mul_(mask)
        if kv.prompt.maps and self.observer:
            where = tuple(row.place for row in rows)
            shown = term if mask is None or merge is None else term * mask
            self.observer.term(self._kv.index(kv), layer, where, query, key[:, :, : kv.count], shown)
        return Term(term, merge)

    def _mask_of(self, kv: KeyValue, place: Place, x: Tensor, like: Tensor, grid: Size | None) -> Tensor:
        """LoRA: the prompt's region over the rows and tokens of x [B, N, C]."""
        assert self._current is not None
        assert kv.prompt.region is not None
        number, name = place
        with self._noting():
            asked = self._asked.get(number)
            # to_out gets a new tensor, of the rows that to_q was called with before.
            if name == "to_q" or asked is None or len(asked) != len(x):
                asked = self._asked[number] = rows_of_view(self._current, x)
            places = [(row.box, row.tile) for row in asked]
            return kv.prompt.region.of_rows(self._called, x.shape[1], like, places, grid)


def _nowhere(layer: Layer) -> bool:
    return False
