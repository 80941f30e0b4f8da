"""Which rows of a UNet call are cond, which uncond, of which image.

A denoiser step has a pattern: what there is to know of each row (its token set, for one), in the order in which
the host concatenates them (the WebUI: [cond..., uncond...]). The host may run it in one call or in many, may leave
uncond out, and an extension may repeat a call's rows for each tile. A cursor follows; what it cannot explain is an
error, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from ..errors import RowsError

Row = TypeVar("Row")
Tile = TypeVar("Tile")


class Rows(Generic[Row]):
    """The cursor over one denoiser step's rows. ``current`` holds what there is to know of each row of the UNet
    call that is running."""

    def __init__(self) -> None:
        self.begin(())

    def begin(self, rows: Sequence[Row]) -> None:
        """A new step, which has these rows."""
        self._pattern = tuple(rows)
        self._taken = 0
        self._chunk: tuple[Row, ...] | None = None
        self.current: tuple[Row, ...] = ()

    def chunk(self, rows: int) -> None:
        """The host hands the next ``rows`` rows to its inner model, which may call the UNet once or
        several times (once for each group of tiles) for them."""
        self._chunk = self._take(rows)

    def call(self, rows: int) -> None:
        """The UNet is called with ``rows`` rows: the chunk's, repeated a whole number of times. A host
        that announces no chunks has its calls counted in their stead."""
        if self._chunk is None:
            self.current = self._take(rows)
            return
        repeats, rest = divmod(rows, len(self._chunk))
        if rest or not repeats:
            raise RowsError(
                f"the UNet was called with {rows} rows, expected a multiple of {len(self._chunk)}: another "
                "extension rearranges the batch in a way that IP-Adapter cannot follow. Disable one of the two"
            )
        self.current = self._chunk * repeats

    def _take(self, rows: int) -> tuple[Row, ...]:
        part = self._pattern[self._taken : self._taken + rows]
        if len(part) != rows or not rows:
            raise RowsError(
                f"the model was called with {rows} rows, expected at most {len(self._pattern) - self._taken} more "
                f"of the {len(self._pattern)} of this step: another extension rearranges the batch in a way "
                "that IP-Adapter cannot follow. Disable one of the two"
            )
        self._taken += rows
        return part

    def tile(self, tiles: Sequence[Tile], on: Callable[[Row, Tile], Row]) -> None:
        """The rows of the running call are those of these tiles, one tile after the other; ``on``: what a row is on one
        of them. Raises RowsError."""
        each, rest = divmod(len(self.current), len(tiles))
        if rest:
            raise RowsError(
                f"the UNet was called with {len(self.current)} rows, expected a multiple of the {len(tiles)} tiles: "
                "another extension rearranges the batch in a way that IP-Adapter cannot follow. Disable one of the two"
            )
        self.current = tuple(on(row, tiles[place // each]) for place, row in enumerate(self.current))

    def of(self, hidden: Tensor) -> tuple[Row, ...]:
        """The rows of ``hidden`` [rows, N, C], what a layer's ``to_q`` is called with.

        Regional Prompter calls to_q on halves of a layer's rows. Halves are views into the layer's
        input, so where they begin in its storage says which rows they are.
        """
        if hidden.shape[0] == len(self.current):
            return self.current
        size = hidden[0].numel()
        whole = hidden.untyped_storage().nbytes() // hidden.element_size()
        first, rest = divmod(hidden.storage_offset(), size)
        part = self.current[first : first + hidden.shape[0]]
        if rest or whole != size * len(self.current) or len(part) != hidden.shape[0]:
            raise RowsError(
                f"a cross-attention layer was called with {hidden.shape[0]} rows, expected {len(self.current)} "
                "or a slice of them: another extension rearranges the rows in a way that IP-Adapter cannot "
                "follow. Disable one of the two"
            )
        return part
