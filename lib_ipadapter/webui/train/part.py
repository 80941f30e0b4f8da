"""What the parts of the tab have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import IPAdapterError
from ..api import access
from ..models import Models
from ..panel.html import failure

QUIET: dict[str, Any] = {"show_progress": False, "queue": False}


class Part:
    """One part of the tab, on one page."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def open_to_all(self) -> bool:
        """Whether people who are asked for no password open the page over the network."""
        return self.models.host.serves_others() and access.asks_nobody(api=False)


def tried(work: Callable[[], Any]) -> tuple[Any, str]:
    """What ``work`` gives, or None and what is wrong as HTML."""
    try:
        return work(), ""
    except IPAdapterError as error:
        return None, failure(str(error))
