"""Which rows of a UNet call are cond, which uncond, of which image.

A denoiser step has a pattern: one token set per row, in the order in which the host concatenates them
(the WebUI: [cond..., uncond...]). The host may run it in one call or in many, may leave uncond out,
and an extension may repeat a call's rows for each tile. A cursor follows; what it cannot explain is an
error, not a guess.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .errors import RowsError


class Rows:
    """The cursor over one denoiser step's rows. ``places`` holds the place in the step of each row of the UNet
    call that is running, ``current`` its token set."""

    def __init__(self) -> None:
        self.begin(())

    def begin(self, sets: Sequence[int]) -> None:
        """A new step, whose rows belong to these token sets."""
        self._pattern = tuple(sets)
        self._taken = 0
        self._chunk: tuple[int, ...] | None = None
        self.places: tuple[int, ...] = ()
        self.current: tuple[int, ...] = ()

    def chunk(self, rows: int) -> None:
        """The host hands the next ``rows`` rows to its inner model, which may call the UNet once or
        several times (once for each group of tiles) for them."""
        self._chunk = self._take(rows)

    def call(self, rows: int) -> None:
        """The UNet is called with ``rows`` rows: the chunk's, repeated a whole number of times. A host
        that announces no chunks has its calls counted in their stead."""
        if self._chunk is None:
            self._run(self._take(rows))
            return
        repeats, rest = divmod(rows, len(self._chunk))
        if rest or not repeats:
            raise RowsError(
                f"the UNet was called with {rows} rows, expected a multiple of {len(self._chunk)}: another "
                "extension rearranges the batch in a way that IP-Adapter cannot follow. Disable one of the two"
            )
        self._run(self._chunk * repeats)

    def _run(self, places: tuple[int, ...]) -> None:
        self.places = places
        self.current = tuple(self._pattern[place] for place in places)

    def _take(self, rows: int) -> tuple[int, ...]:
        part = tuple(range(self._taken, min(self._taken + rows, len(self._pattern))))
        if len(part) != rows or not rows:
            raise RowsError(
                f"the model was called with {rows} rows, expected at most {len(self._pattern) - self._taken} more "
                f"of the {len(self._pattern)} of this step: another extension rearranges the batch in a way "
                "that IP-Adapter cannot follow. Disable one of the two"
            )
        self._taken += rows
        return part

    def of(self, hidden: Tensor) -> tuple[int, ...]:
        """The token sets of ``hidden`` [rows, N, C], what a layer's ``to_q`` is called with."""
        return self.current[self._part(hidden)]

    def places_of(self, hidden: Tensor) -> tuple[int, ...]:
        """The places in the step of ``hidden`` [rows, N, C]; a place stands twice where rows are repeated for tiles."""
        return self.places[self._part(hidden)]

    def _part(self, hidden: Tensor) -> slice:
        """Regional Prompter calls to_q on halves of a layer's rows. Halves are views into the layer's
        input, so where they begin in its storage says which rows they are."""
        if hidden.shape[0] == len(self.current):
            return slice(None)
        size = hidden[0].numel()
        whole = hidden.untyped_storage().nbytes() // hidden.element_size()
        first, rest = divmod(hidden.storage_offset(), size)
        part = slice(first, first + hidden.shape[0])
        if rest or whole != size * len(self.current) or part.stop > len(self.current):
            raise RowsError(
                f"a cross-attention layer was called with {hidden.shape[0]} rows, expected {len(self.current)} "
                "or a slice of them: another extension rearranges the rows in a way that IP-Adapter cannot "
                "follow. Disable one of the two"
            )
        return part
