"""What the panel's row of saved references does: embeds and folders by name, and saving embeds."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...errors import IPAdapterError
from ..words import worded
from . import html
from .events import PREPROCESSING
from .references import change, extended, paths_of, without
from .values import NO_MODEL, pictures, shown_name


class SavedEvents:
    """The handlers of one unit's row. models: what build_panel was given; redraws: whether the tab is img2img."""

    def __init__(self, models: Any, redraws: bool = False) -> None:
        self.models = models
        self.redraws = redraws

    def names(self) -> list[str]:
        """Embeds and folders, none where they cannot be listed; in img2img its picture too."""
        own = [html.INPUT_TEXT] if self.redraws else []
        try:
            return own + [shown_name(named) for named in self.models.shelf().names()]
        except OSError:
            return own

    def choose(self, weights: Any, saved: Any, files: Any) -> list[Any]:
        """The weights' text with a number for what was chosen last, and the unit is on. gradio calls it for what is
        taken out, too: the text then has more numbers, and is left to ``dropped``."""
        if not saved:
            return [gr.update(), gr.update()]
        text = extended(str(weights or ""), len(paths_of(files)) + len(saved) - 1, 1)
        return [gr.update() if text.strip() and text == weights else text, True]

    def dropped(self, before: Any, files: Any, weights: Any, saved: Any) -> list[Any]:
        """The saved references were changed in their list: those of the next change's ``before``, and the weights' text
        without the numbers of those that are gone."""
        now, was, pictures = list(saved or []), list(before or []), len(paths_of(files))
        places = [*range(pictures), *(pictures + i for i, name in enumerate(was) if name in now)]
        fewer = len(places) == pictures + len(now) < pictures + len(was)
        kept = without(str(weights or ""), pictures + len(was), places) if fewer else weights
        return [now, change(weights, kept)]

    def save(self, name: Any, files: Any, weights: Any, saved: Any, model: Any, masks: Any, *look: Any) -> str:
        """A remark. look: the values of PREPROCESSING; name: None if the user did not want to."""
        if name is None:
            return ""
        try:
            unit = {
                "model": "" if model == NO_MODEL else model,
                **dict(zip(PREPROCESSING, look, strict=True)),
            }
            images = pictures(files, weights, saved, masks)
            self.models.shelf().save(name, {**unit, "images": images})
        except IPAdapterError as error:
            return html.failure(worded(error))
        return html.note(f'Saved embeds "{name}". To use them instead of the images, remove these and choose it here.')

    def delete(self, name: Any) -> str:
        """A remark. name: None if the user did not want to."""
        if name is None:
            return ""
        try:
            self.models.shelf().saved.remove(name)
        except IPAdapterError as error:
            return html.failure(worded(error))
        return html.note(f'Deleted embeds "{name}".')
