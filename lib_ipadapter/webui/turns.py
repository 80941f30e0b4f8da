"""References in turn: which picture of the job a row is of, and which reference a job inside another takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..attention.session import COND, UNCOND
from ..errors import UnitError
from ..prompts.resolve import one_per_picture, without_folders
from ..unit import Unit
from ..unit.names import Named
from .log import logger
from .stack import callers, is_in, jobs, variable
from .store import HostStore


def places(p: Any) -> list[int]:
    """The place of the reference that each picture of the job takes: of picture k the k-th. Raises UnitError."""
    if getattr(p, "txt2img_upscale", False):
        raise UnitError(
            "distribute",
            "one per picture",
            "together, with the picture's own reference: the WebUI does not say which of the pictures it upscales",
            "References is one per picture, and the WebUI does not say which of the pictures it upscales, expected "
            "together: leave the picture's own reference alone in the unit, and choose together",
        )
    only = _only(p)
    return list(range(count(p))) if only is None else [only]


def taken(p: Any, unit: Unit, store: HostStore) -> list[Unit]:
    """A unit for each reference, where they take turns. Says which files of its folders are no pictures. Raises
    UnitError."""
    for named in (reference.image for reference in unit.images):
        folder = isinstance(named, Named) and named.kind == "folder"
        if folder and (others := store.folders.others(named.name)):
            text = f"left out of the folder {named.name}, as no pictures: {', '.join(others)}"
            logger.warning("%s", text)
            p.comment(f"IP-Adapter {text}")
    if unit.distribute != "one per picture":
        return [unit]
    turn = one_per_picture(unit, everyone := places(p), store)
    left = len(without_folders(unit, store).images) - len(everyone)
    if left > 0 and len(everyone) > 1:
        p.comment(
            f"IP-Adapter: one reference per picture, so the last {left} were not used for {len(everyone)} pictures"
        )
    return turn


def of_detail(unit: Unit, detail: int | None, store: HostStore) -> Unit | None:
    """The unit with the reference of its own that a job inside another one has; None for a detail behind the last
    reference. detail: which of the picture it is. Raises UnitError."""
    if detail is None:
        raise UnitError(
            "distribute", unit.distribute, "together: which of the picture's details this job draws is not known"
        )
    if detail >= len(without_folders(unit, store).images):
        return None
    return replace(one_per_picture(unit, [detail], store)[0], distribute=unit.distribute)


def count(p: Any) -> int:
    """The job's pictures."""
    return int(max(p.batch_size * p.n_iter, len(p.all_prompts)))


def _only(p: Any) -> int | None:
    """The place of the one reference of all pictures of ``p``, where it draws one file of img2img's batch tab, or
    draws a picture of another job again, as ADetailer does."""
    frames = list(callers())
    for frame in frames:
        if is_in(frame, "modules.img2img", "process_batch"):
            place = variable(frame, "i")
            if not isinstance(place, int):
                raise UnitError(
                    "distribute",
                    "one per picture",
                    "together: this WebUI does not say which file of the batch tab it processes",
                )
            return place
    outer = next((job for job in reversed(jobs(frames)) if job is not p), None)
    return None if outer is None else outer.iteration * outer.batch_size + getattr(outer, "batch_index", 0)


class TextByPicture(str):
    """A value of ``extra_generation_params`` that differs by picture: ``of`` gives it for each of the job's,
    also for those of prompts that an extension adds later. The WebUI calls it with create_infotext's locals,
    whose index counts within the batch while a batch is saved, and over the whole job otherwise. As text it is that of
    the first picture: Forge classic writes the parameters as JSON, which has no functions."""

    _of: Callable[[int], str]

    def __new__(cls, of: Callable[[int], str]) -> TextByPicture:
        made = super().__new__(cls, of(0))
        made._of = of
        return made

    def __getnewargs__(self) -> tuple[Any]:  # type: ignore[override]
        return (self._of,)

    def __call__(self, p: Any, index: int, all_prompts: Any, use_main_prompt: bool, **others: Any) -> str:
        first = p.iteration * p.batch_size if all_prompts is p.prompts and not use_main_prompt else 0
        return self._of(first + index)


def rows(p: Any, pictures: Sequence[int], cond: int) -> list[int]:
    """The token set of each row of a denoiser step, of which ``cond`` are cond rows: 2k + COND or 2k + UNCOND of the
    job's picture k. pictures: each row's place in the batch."""
    first = p.iteration * p.batch_size
    return [2 * (first + picture) + (COND if row < cond else UNCOND) for row, picture in enumerate(pictures)]
