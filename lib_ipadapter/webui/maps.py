"""One job's maps of where references acted, and the sheets that are returned beside its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..attention.heatmaps.recorder import Maps, Recorder
from ..attention.heatmaps.sheet import Font, figures, sheet
from ..attention.region import WHOLE, Box
from ..attention.session import ImagePrompt, Session
from ..unit import Unit
from .log import logger
from .replacement import Replacement
from .stack import callers, is_in

TEXT = "IP-Adapter maps"  # in a sheet's PNG: its figures, JSON
_LEFT_OUT = (
    "IP-Adapter: some UNet calls are missing from the maps of where the references acted, because another "
    "extension samples in tiles or changes the attention"
)
_NONE = (
    "IP-Adapter: there are no maps of where the references acted, because they acted nowhere in the last pass, or "
    "another "
    "extension replaces the attention"
)


def scripted(p: Any) -> bool:
    """Whether a script of the dropdown runs the job. Those scripts make grids and join tiles of all the pictures that a
    run returns, so a sheet among them would spoil what they make."""
    args = list(getattr(p, "script_args", None) or ())
    return bool(args) and isinstance(args[0], int) and args[0] > 0  # the script's number


def shown_in(p: Any, units: Sequence[Unit], inside: bool = False) -> list[Unit]:
    """The units, without maps in a job ``inside`` another one and where sheets would spoil what a script makes."""
    if not (inside or scripted(p)) or not any(unit.enabled and unit.maps for unit in units):
        return list(units)
    if not inside:
        p.comment(
            "IP-Adapter makes no maps of where references acted under a script of the list: they would become part of "
            "its result"
        )
    return [replace(unit, maps=False) for unit in units]


def when_closed(p: Any, sheets: Sheets, append: Callable[[], None]) -> None:
    """Appends the sheets when the WebUI closes ``p``, which is after all scripts' postprocess: some of them (LLuL) go
    through all pictures and expect the job's size. img2img's batch tab closes its one ``p`` after all files, so there
    they are appended at once."""
    if not sheets:
        return
    if any(is_in(frame, "modules.img2img", "process_batch") for frame in callers()):
        append()
        return

    def close(original: Callable[..., Any]) -> None:
        closing.restore(p, "close")
        original()
        append()

    closing = Replacement(close, p.close)
    p.close = closing


class Sheets:
    """The maps of each batch of a job, and the pictures that they lie over. shown: the units and their prompts."""

    def __init__(self, session: Session, shown: Sequence[tuple[int, Unit, ImagePrompt]]) -> None:
        places = {id(prompt): place for place, prompt in enumerate(session.prompts)}
        # A prompt of weight 0 is not the session's: it acts nowhere.
        self._shown = [entry for entry in shown if entry[2].maps and id(entry[2]) in places]
        self._places = [places[id(prompt)] for _, _, prompt in self._shown]
        self._recorder = session.observer if isinstance(session.observer, Recorder) else None
        self._batches: dict[int, list[list[Maps | None]]] = {}
        self._pictures: list[tuple[int, int, Image.Image]] = []
        self._left_out = False

    def __bool__(self) -> bool:
        """Whether anything is to be shown or said."""
        return bool(self._pictures) or self._left_out

    def begin(self) -> None:
        """A batch is about to be sampled."""
        if self._recorder:
            self._recorder.clear()

    def end(self, iteration: int) -> None:
        """The batch was sampled."""
        recorder = self._recorder
        if recorder is None:
            return
        self._batches[iteration] = [recorder.maps(place) for place in self._places]
        self._left_out = self._left_out or bool(recorder.left_out)
        recorder.clear()

    def picture(self, iteration: int, index: int, picture: Image.Image) -> None:
        """A finished picture of a batch."""
        if self._shown:
            self._pictures.append((iteration, index, picture))

    def append_to(self, processed: Any, cut: Box | None, host: Any) -> None:
        """Adds the sheets behind the pictures, each with its picture's infotext. cut: the part that was inpainted
        alone. Never raises."""
        if self._left_out:
            processed.comments += f"{_LEFT_OUT}\n"
        box = cut if cut and host.pastes_inpainted() else WHOLE
        try:
            self._append(processed, box, host.font, host.writes_infotext())
        except Exception as error:
            logger.exception("no maps of where the references acted")
            processed.comments += f"IP-Adapter could not show where the references acted: {error}\n"

    def _append(self, processed: Any, box: Box, font: Font, texts: bool) -> None:
        first, before = processed.index_of_first_image, len(processed.images)
        for place, (iteration, index, picture) in enumerate(self._pictures):
            infotext = (processed.infotexts[first + place :] or processed.infotexts)[0]
            for number, maps in self._of(iteration, index):
                made = self._sheet(number, maps, place, picture, box, font)
                if texts:
                    made.info["parameters"] = infotext
                # Other scripts add images without texts.
                missing = len(processed.images) - len(processed.infotexts)
                processed.infotexts += [infotext] * (missing + 1)
                processed.images.append(made)
        if self._pictures and len(processed.images) == before and not self._left_out:
            processed.comments += f"{_NONE}\n"

    def _of(self, iteration: int, index: int) -> list[tuple[int, Maps]]:
        """(place among the shown units, maps) of one picture."""
        found = []
        for number, batch in enumerate(self._batches.get(iteration, [])):
            maps = batch[index] if index < len(batch) else None
            if maps is not None:
                found.append((number, maps))
        return found

    def _sheet(self, number: int, maps: Maps, place: int, picture: Image.Image, box: Box, font: Font) -> Image.Image:
        index, unit, prompt = self._shown[number]
        title = f"IP-Adapter unit {index + 1}, {unit.model}: where it acted in picture {place + 1}"
        labels = [f"reference {i + 1}" for i in range(prompt.maps)]
        if prompt.maps < len(unit.images):
            labels = [f"{len(unit.images)} references\n{unit.combine}"]
        made = sheet(picture, maps, title, labels, box, font)
        made.info[TEXT] = json.dumps(
            {
                "unit": index,
                "picture": place,
                "scale": round(maps.top, 5),
                "lowest": round(maps.bottom, 5),
                "references": figures(maps),
            }
        )
        return made
