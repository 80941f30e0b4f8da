"""Which row of a UNet call is cond or uncond, and of which picture.

A denoiser step announces its rows. A host may run them in one call or in many, leave uncond out, or repeat them for
tiles; where the rows of a call come from is a ``RowSource``. What no source can explain is an error, not a guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import RowsError
from .region import WHOLE, Box
from .same import distances

COND, UNCOND = 0, 1
EXTRA = -1  # the place of a row that is not one of the step's
_CLOSE = 0.02  # distance of latents that are the same but for rounding to half precision


class Row(NamedTuple):
    """One row of a UNet call.

    place: index among the step's rows, EXTRA if it is not one of them; tokens: index of its token set, 2k + COND or
    2k + UNCOND for picture k; box: the part of the picture that the step's latents show; tile: the part of those
    latents that the call shows; picture: index in the batch, 0 where it does not matter; part: of the call, where a
    host labels parts.
    """

    place: int
    tokens: int
    box: Box = WHOLE
    tile: Box = WHOLE
    picture: int = 0
    part: int = 0


class RowSource(Protocol):
    """Says which rows a UNet call holds."""

    def begin(self, rows: Sequence[Row]) -> None:
        """A step with these rows begins; without any, the step is over."""

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> tuple[Row, ...] | None:
        """The rows of a UNet call with these latents [rows, C, H, W] and keyword arguments; None outside a step, if
        the call is left alone. Raises RowsError."""


def unexplained(count: int, expected: str) -> RowsError:
    """The error for a call with ``count`` rows."""
    return RowsError(
        f"the model was called with {count} rows, expected {expected}: another extension rearranges the batch in a way "
        "that IP-Adapter cannot follow. Disable one of the two"
    )


class CursorRows:
    """Counts rows: each call holds the step's next ones, in the order of the step."""

    def __init__(self) -> None:
        self.begin(())

    def begin(self, rows: Sequence[Row]) -> None:
        """A step with these rows begins."""
        self._pattern = tuple(rows)
        self._taken = 0
        self._chunk: tuple[Row, ...] | None = None

    def chunk(self, rows: int) -> None:
        """The host gives the next ``rows`` rows to its inner model, which may call the UNet several times for them.
        Optional: a host that announces no chunks has its UNet calls counted."""
        self._chunk = self.take(rows)

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> tuple[Row, ...] | None:
        """The chunk's rows, repeated a whole number of times (tiles); without a chunk, the step's next rows."""
        if not self._pattern:
            return None
        if self._chunk is None:
            return self.take(len(latents))
        return repeated(self._chunk, len(latents))

    def next(self, count: int) -> tuple[Row, ...]:
        """The step's next rows, fewer than ``count`` if the step has no more."""
        return self._pattern[self._taken : self._taken + count]

    def take(self, count: int) -> tuple[Row, ...]:
        """The step's next rows; the cursor moves behind them. Raises RowsError."""
        rows = self.next(count)
        if len(rows) != count or not count:
            left = len(self._pattern) - self._taken
            raise unexplained(count, f"at most {left} more of the {len(self._pattern)} of this step")
        self._taken += count
        return rows


class LabelledRows:
    """Reads a host's labels (Forge, reForge): ``transformer_options["cond_or_uncond"]`` has one label for each part of
    the call, 0 cond and 1 uncond. A part is the whole batch, its pictures in order. With AND a step has a cond part for
    each of the prompts that it joins, and begins with the rows of all of them. Tiles repeat the whole call."""

    def __init__(self) -> None:
        self.begin(())

    def begin(self, rows: Sequence[Row]) -> None:
        """A step with these rows begins."""
        uncond = tuple(row for row in rows if row.tokens % 2 == UNCOND)
        cond = tuple(row for row in rows if row.tokens % 2 == COND)
        batch = len(uncond) or 1
        self._parts = {COND: [cond[i : i + batch] for i in range(0, len(cond), batch)], UNCOND: [uncond]}
        self._used = {COND: 0, UNCOND: 0}
        self._latents: Tensor | None = None
        self._rows = tuple(rows)

    def show(self, latents: Tensor) -> None:
        """The step's latents [B, C, H, W], up to a factor. Rows with others have no place in the step."""
        self._latents = latents

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> tuple[Row, ...] | None:
        """Raises RowsError for missing or unknown labels, and for parts that are not the batch."""
        if not self._rows:
            return None
        labels = (kwargs.get("transformer_options") or {}).get("cond_or_uncond")
        if not labels:
            raise unexplained(len(latents), "labels of its parts in cond_or_uncond")
        own = self._are_steps(latents)
        rows = tuple(row for part, label in enumerate(labels) for row in self._part(part, label, own, len(latents)))
        return repeated(rows, len(latents))

    def _part(self, part: int, label: int, own: bool, count: int) -> tuple[Row, ...]:
        """The step's next rows with this label; when they are used up, those of a pass beside the step's own."""
        of_label = self._parts.get(label, [()])
        if not of_label[0]:
            raise unexplained(count, f"parts labelled {COND} or {UNCOND}, got {label}")
        used = self._used[label]
        extra = not own or used >= len(of_label)
        self._used[label] += own
        rows = of_label[used % len(of_label)]
        return tuple(row._replace(part=part, place=EXTRA if extra else row.place) for row in rows)

    def _are_steps(self, latents: Tensor) -> bool:
        """Whether a call is one of the step's own; tiles are."""
        known = self._latents
        if known is None or latents.shape[-2:] != known.shape[-2:]:
            return True
        return bool((distances(latents[: len(known)], known).diagonal() < _CLOSE).all())


def repeated(rows: tuple[Row, ...], count: int) -> tuple[Row, ...]:
    """``count`` rows: these, a whole number of times. Raises RowsError."""
    repeats, rest = divmod(count, len(rows))
    if rest or not repeats:
        raise unexplained(count, f"a multiple of {len(rows)}")
    return rows * repeats


def tiled(rows: tuple[Row, ...], tiles: Sequence[Box]) -> tuple[Row, ...]:
    """The rows of a call that are those of these tiles, one tile after the other. Raises RowsError."""
    each, rest = divmod(len(rows), len(tiles))
    if rest:
        raise unexplained(len(rows), f"a multiple of the {len(tiles)} tiles")
    return tuple(row._replace(tile=tiles[i // each]) for i, row in enumerate(rows))


def rows_of_view(rows: tuple[Row, ...], hidden: Tensor) -> tuple[Row, ...]:
    """The rows of ``hidden`` [rows, N, C], with which a layer's ``to_q`` is called; ``rows``: those of the UNet call.

    Regional Prompter calls to_q on halves of a layer's rows. A half is a view of the layer's input, so its offset in
    the storage says which rows it holds. This assumes that the input is contiguous and fills its storage. Forge Couple
    calls to_q with a copy of the cond rows for each of its regions. Anything else is a RowsError.
    """
    if hidden.shape[0] == len(rows):
        return rows
    if hidden.shape[0] > len(rows) and (copied := _copied(rows, hidden)):
        return copied
    size = hidden[0].numel()
    whole = hidden.untyped_storage().nbytes() // hidden.element_size()
    first, rest = divmod(hidden.storage_offset(), size)
    part = rows[first : first + hidden.shape[0]]
    if rest or whole != size * len(rows) or len(part) != hidden.shape[0]:
        raise RowsError(
            f"a cross-attention layer was called with {hidden.shape[0]} rows, expected {len(rows)} or a slice of them: "
            "another extension rearranges the rows in a way that IP-Adapter cannot follow. Disable one of the two"
        )
    return part


def _copied(rows: tuple[Row, ...], hidden: Tensor) -> tuple[Row, ...]:
    """The rows where each cond part is there several times, one copy after the other, and a row of zeros may make their
    number even; () if that is not what ``hidden`` holds."""
    parts = [tuple(group) for _, group in itertools.groupby(rows, key=lambda row: row.part)]
    cond = sum(len(part) for part in parts if part[0].tokens % 2 == COND)
    for padding in (0, 1):
        copied = len(hidden) - padding - (len(rows) - cond)
        copies, rest = divmod(copied, cond) if cond else (2, copied)
        if rest or copies < 2 or (padding and (len(hidden) % 2 or hidden[-1].any())):
            continue
        found: list[Row] = []
        for part in parts:
            times = 1 if part[0].tokens % 2 == UNCOND else copies
            first = len(found)
            found += part * times
            held = hidden[first : len(found)].unflatten(0, (times, len(part)))
            if not torch.equal(held, held[:1].expand_as(held)):
                break
        else:
            return (*found, *found[:1]) if padding else tuple(found)
    return ()
