"""A denoiser step of the WebUI: its rows, and what the inner model is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..attention.region import Box
from ..attention.rows import LabelledRows, RowSource
from ..attention.session import COND, Session
from ..attention.traced import Content, TracedRows
from ..errors import RowsError
from . import turns
from .hosts.base import StepPlan


@dataclass(frozen=True)
class StepRows:
    """The rows of a step, cond first. sets: the token set of each; boxes: the part of the picture that each shows, or
    one for all; pictures: index in the batch of each, () if it is not needed or not known."""

    sets: tuple[int, ...]
    boxes: tuple[Box, ...]
    pictures: tuple[int, ...]

    @classmethod
    def of(cls, p: Any, plan: StepPlan, boxes: Sequence[Box], turning: bool, maps: bool) -> StepRows:
        """boxes: of the batch's pictures, or one for all; turning: each picture has references of its own; maps:
        pictures are needed if they are known. Raises RowsError."""
        needed = turning or len(boxes) > 1
        pictures = plan.pictures(needed) if needed or maps else []
        cond = plan.kinds.count(COND)
        sets = turns.rows(p, pictures, cond) if turning else plan.kinds
        boxes = [boxes[picture] for picture in pictures] if len(boxes) > 1 else boxes
        return cls(tuple(sets), tuple(boxes), tuple(pictures))

    @property
    def cond_pictures(self) -> tuple[int, ...]:
        """The pictures of the cond rows."""
        return self.pictures[: sum(tokens % 2 == COND for tokens in self.sets)]


def content(params: Any) -> Content:
    """What the rows of a step hold, with what other callbacks have changed so far."""
    cond, uncond = _text(params.text_cond), _text(params.text_uncond)
    repeats = (len(params.x) - len(cond)) // max(len(uncond), 1)  # twice for an edit model
    return Content.of(params.x, cond, *[uncond] * repeats)


def _text(cond: Any) -> Tensor:
    text: Tensor = cond["crossattn"] if isinstance(cond, dict) else cond  # SDXL has more than the text
    return text


class InnerModel:
    """The hooks on a denoiser's inner model, which runs a step's rows in chunks. Rows that the UNet's calls label need
    none."""

    def __init__(self, rows: RowSource) -> None:
        self.error: BaseException | None = None  # the last one raised in a call
        self._rows = rows if isinstance(rows, TracedRows) else None
        self._model: nn.Module | None = None
        self._handles: list[Any] = []

    def watch(self, denoiser: Any) -> None:
        """Hooks on the denoiser's inner model, and off another one. A host may have none that is called as a module."""
        if self._rows is None:
            return
        model = denoiser.inner_model
        if model is self._model or not isinstance(model, nn.Module):
            return
        self.leave()
        self._model = model
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def leave(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model = [], None
        if self._rows is not None:
            self._rows.forget()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = args[0] if args else kwargs["input"]
        given = kwargs.get("cond", args[2] if len(args) > 2 else None)
        texts = given.get("c_crossattn", [given.get("crossattn")]) if isinstance(given, dict) else [None]
        if self._rows is None:
            return
        try:
            self._rows.chunk(Content.of(latents, texts[0]))
        except RowsError as error:
            # The WebUI swallows it where another extension's callback has called the model.
            self.error = error
            raise

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._rows is not None:
            self._rows.unchunk()


def begin(session: Session, rows: RowSource, step: StepRows, params: Any, hires: bool) -> None:
    """Announces a step to the session."""
    denoiser = params.denoiser
    fraction = min(denoiser.step / max(denoiser.total_steps or 1, 1), 1.0)
    size = (params.x.shape[-2], params.x.shape[-1])
    session.begin_step(step.sets, fraction, hires, size, step.boxes, step.cond_pictures)
    if isinstance(rows, TracedRows):
        rows.trace(lambda: content(params), bool(step.pictures))
    elif isinstance(rows, LabelledRows) and session.observer is not None:
        rows.show(params.x)
