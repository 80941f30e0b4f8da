"""Rows identified by what they hold, for hosts that label nothing (AUTOMATIC1111).

The cursor (``rows.CursorRows``) explains the host's own calls. Other extensions run the model once more (PAG, SAG),
reorder the rows (Regional Prompter's latent mode) or cut the batch into windows (AnimateDiff). Such rows are found by
comparing their text and latents with those of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rows import EXTRA, CursorRows, Row, repeated, unexplained
from .same import distances, same_text

_EQUAL = 1e-6  # distances of equal latents: rounding of a sine near 0
_CLOSE = 0.02  # distance of latents that are the same but for rounding to half precision


@dataclass(frozen=True)
class Content:
    """What the rows of a call hold: latents [R, C, H, W] and the text tokens [L, D] of each row, () if not known."""

    latents: Tensor
    texts: Sequence[Tensor] = ()

    @classmethod
    def of(cls, latents: Tensor, *texts: Tensor | None) -> Content:
        """texts: [r, L, D] of consecutive rows, in all as many as there are latents; else they count as unknown."""
        rows = [row for text in texts if text is not None for row in text]
        return cls(latents, rows if len(rows) == len(latents) else ())

    def of_rows(self, rows: Sequence[int]) -> Content:
        """These rows of it."""
        return Content(self.latents[list(rows)], [self.texts[i] for i in rows] if self.texts else ())


class TracedRows:
    """``rows.RowSource`` of a host that gives chunks of the step's rows to an inner model, which calls the UNet."""

    def __init__(self) -> None:
        self._cursor = CursorRows()
        self.forget()

    def forget(self) -> None:
        """No step is known: UNet calls are left alone until the next one begins."""
        self._cursor.begin(())
        self._rows: tuple[Row, ...] = ()
        self._now: Callable[[], Content] | None = None
        self._before: Tensor | None = None
        self._chunk: tuple[tuple[Row, ...], Content] | None = None

    def begin(self, rows: Sequence[Row]) -> None:
        """A step with these rows begins; without any, the host's own calls of the step are over."""
        self._cursor.begin(rows)
        if rows:
            self._rows, self._now, self._before, self._chunk = tuple(rows), None, None, None

    def trace(self, now: Callable[[], Content], pictures: bool) -> None:
        """now: what the step's rows hold, asked at each call since other extensions may still change it; pictures:
        whether it matters which picture of the batch a row is of."""
        self._now = now
        self._before = now().latents.clone() if pictures else None

    def chunk(self, given: Content) -> None:
        """The inner model is called with these rows. Raises RowsError."""
        if not self._rows:
            return
        count = len(given.latents)
        expected = self._cursor.next(count)
        if self._now is None:
            self._chunk = self._cursor.take(count), given
            return
        step = self._now()
        rows = self._in_order(step)
        if len(expected) == count and _agree(expected, given, step):
            self._cursor.take(count)
            self._chunk = tuple(rows[row.place] for row in expected), given
        else:
            self._chunk = _extra(identify(rows, step, given)), given

    def unchunk(self) -> None:
        """The inner model has returned."""
        self._chunk = None

    def call(self, latents: Tensor, kwargs: Mapping[str, Any]) -> tuple[Row, ...] | None:
        """The chunk's rows, repeated for tiles, or windows of them. Outside a chunk: rows like those of the step."""
        if not self._rows:
            return None
        given = Content.of(latents, kwargs.get("context"))
        if self._chunk is None:
            if self._now is None:
                return self._cursor.call(latents, kwargs)
            step = self._now()
            return _extra(identify(self._in_order(step), step, given))
        rows, chunk = self._chunk
        if len(latents) % len(rows) == 0:
            return repeated(rows, len(latents))
        return identify(rows, chunk, given)

    def _in_order(self, step: Content) -> tuple[Row, ...]:
        """The step's rows as they stand now: others may have permuted the cond rows among the pictures. Raises
        RowsError for latents that are no picture's."""
        if self._before is None or torch.equal(self._before, step.latents):
            return self._rows
        if len(self._before) != len(step.latents):
            raise unexplained(len(step.latents), str(len(self._before)))
        rows = list(self._rows)
        for kind in (0, 1):
            places = [row.place for row in self._rows if row.tokens % 2 == kind]
            before, now = Content(self._before[places]), Content(step.latents[places])
            found = identify([self._rows[i] for i in places], before, now, strict=True)
            for place, row in zip(places, found, strict=True):
                rows[place] = row
        return tuple(rows)


def _extra(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row._replace(place=EXTRA) for row in rows)


def _agree(rows: Sequence[Row], given: Content, step: Content) -> bool:
    """Whether the call may hold these rows of the step: no row has the text of another one. Unknown text, which an
    extension has changed, does not count."""
    if not given.texts or not step.texts:
        return True
    expected = [step.texts[row.place] for row in rows]
    # One comparison for all rows, as each makes the CPU wait for the GPU.
    if len({text.shape for text in expected}) == 1 and same_text(torch.stack([*given.texts]), torch.stack(expected)):
        return True
    return all(
        same_text(text, step.texts[row.place]) or not any(same_text(text, one) for one in step.texts)
        for text, row in zip(given.texts, rows, strict=True)
    )


def identify(rows: Sequence[Row], known: Content, given: Content, strict: bool = False) -> tuple[Row, ...]:
    """Which of ``rows``, with content ``known``, each of the ``given`` ones is. Rows that nothing distinguishes are
    taken in order; strict: rows with the latents of no picture are an error too. Raises RowsError."""
    matches = _matches(rows, known, given, strict)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, match in enumerate(matches):
        groups.setdefault(match, []).append(i)
    found: dict[int, Row] = {}
    for match, members in groups.items():
        if not match or not (_alike(rows, match) or len(members) % len(match) == 0):
            raise unexplained(len(matches), f"rows of the {len(rows)} of this step, by their text and latents")
        found |= {i: rows[match[j % len(match)]] for j, i in enumerate(members)}
    return tuple(found[i] for i in range(len(matches)))


def _alike(rows: Sequence[Row], match: Sequence[int]) -> bool:
    return len({rows[i]._replace(place=0) for i in match}) <= 1


def _matches(rows: Sequence[Row], known: Content, given: Content, strict: bool) -> list[tuple[int, ...]]:
    """Of each given row, which known ones it may be: the same text, and of those the same latents."""
    everything = tuple(range(len(rows)))
    by_text = [everything] * len(given.latents)
    if known.texts and given.texts:
        by_text = [_by_text(text, known.texts) for text in given.texts]
    if all(_alike(rows, match) for match in by_text):
        return by_text
    apart = distances(given.latents, known.latents)
    return [_nearest(rows, match, apart[i].tolist(), strict) for i, match in enumerate(by_text)]


def _by_text(text: Tensor, known: Sequence[Tensor]) -> tuple[int, ...]:
    """The known texts that a row's text is: the very same memory where there is such, else equal ones. Prompt and
    negative prompt are often equal, and then only the memory tells cond from uncond."""
    same = tuple(i for i, one in enumerate(known) if one.data_ptr() == text.data_ptr())
    return same or tuple(i for i, one in enumerate(known) if same_text(text, one))


def _nearest(rows: Sequence[Row], match: tuple[int, ...], apart: Sequence[float], strict: bool) -> tuple[int, ...]:
    """Those of ``match`` whose latents are the given row's, or much nearer than any others; else all of them, none if
    ``strict``."""
    least = min((apart[i] for i in match), default=1.0)
    nearest = tuple(i for i in match if apart[i] <= least + _EQUAL)
    others = min((apart[i] for i in match if i not in nearest), default=1.0)
    if least < _CLOSE or least < others / 2:
        return nearest
    return () if strict else match
