"""Instance-level monkeypatches that can be removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Replacement:
    """A method put onto one instance in the place of another; it can be taken off again."""

    def __init__(self, function: Callable[..., Any], original: Callable[..., Any]) -> None:
        self.function = function
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.original, *args, **kwargs)

    def restore(self, p: Any, name: str) -> None:
        """Restores ``p``: the attribute that it had, or its class's method."""
        if getattr(self.original, "__func__", None) is getattr(type(p), name, None):
            delattr(p, name)
        else:
            setattr(p, name, self.original)
