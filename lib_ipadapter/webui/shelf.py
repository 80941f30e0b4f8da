"""Saved embeds and folders of pictures beside the adapters. A request names them; it never gives a path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.call_queue import queue_lock

from ..errors import UnitError
from ..files.embeds import Embeds, EmbedsFolder
from ..prompts import features
from ..prompts.references import PictureFolders
from ..unit import Unit
from ..unit.names import Named
from . import settings
from .pictures import held_by

if TYPE_CHECKING:
    from .models import Models


class HostShelf:
    """``references.Shelf`` of the WebUI: ``embeds`` and ``references`` in the folder of the adapters."""

    def __init__(self, folder: Path, models: Models) -> None:
        self.saved = EmbedsFolder(folder / "embeds")
        self.folders = PictureFolders(folder / "references")
        self.models = models

    def embeds(self, name: str) -> Embeds:
        """Raises UnitError, FileError."""
        return self.saved.load(name)

    def folder(self, name: str) -> list[Path]:
        """Raises UnitError."""
        return self.folders.pictures(name)

    def names(self) -> list[Named]:
        """What there is, embeds first."""
        embeds, folders = self.saved.names(), self.folders.names()
        return [*(Named("embeds", name) for name in embeds), *(Named("folder", name) for name in folders)]

    def check(self, named: Named) -> None:
        """Raises UnitError for what is not there, FileError for what is broken."""
        self.embeds(named.name) if named.kind == "embeds" else self.folder(named.name)

    def save(self, name: Any, given: Mapping[str, Any], title: Any = "") -> dict[str, Any]:
        """Saves the references of a unit object as embeds; returns their header. Raises IPAdapterError."""
        self.saved.check(name)
        if not isinstance(title, str) or len(title) > 1000:
            raise UnitError("title", title, "a text of at most 1000 characters")
        models = self.models
        fields = {"fit": settings.default_fit(), **models.presets().over(given), "enabled": True}
        held = held_by(Unit.parse(fields), self)
        adapter, hashes = models.adapter(held.unit.model), [picture.hash for picture in held.images]
        with queue_lock, models.encoding():
            embeds = features.embeds(
                name, held.unit, held.pictures(), hashes, models.source(), adapter.spec, title
            )
        self.saved.save(embeds)
        return embeds.report()
