"""Methods of one object in the place of its own."""

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
        """``p`` is as it was: its own attribute again, or the class's method."""
        if getattr(self.original, "__func__", None) is getattr(type(p), name, None):
            delattr(p, name)
        else:
            setattr(p, name, self.original)
