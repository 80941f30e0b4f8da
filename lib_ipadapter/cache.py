"""A small cache: the entries used last stay."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class LRU(Generic[T]):
    """At most ``size()`` entries, asked at each insertion so that a setting can change; thread-safe."""

    def __init__(self, size: Callable[[], int]) -> None:
        self._size = size
        self._entries: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The entry at ``key``, made when it is not there. An error in ``make`` leaves nothing behind."""
        with self._lock:
            if key not in self._entries:
                self._entries[key] = make()
            self._entries.move_to_end(key)
            value = self._entries[key]
            while len(self._entries) > max(self._size(), 0):
                self._entries.popitem(last=False)
            return value

    def clear(self) -> None:
        """Drops all entries."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
