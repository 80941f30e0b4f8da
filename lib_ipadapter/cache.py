"""Caches bounded by a number of entries or of bytes, and values that are computed when they are needed."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Least recently used entries are dropped first. Thread-safe.

    size: how much one entry takes; limit: how much all of them may take together, asked at each insertion so that a
    setting can change. An entry larger than the limit is returned and not kept.
    """

    def __init__(self, limit: Callable[[], int], size: Callable[[T], int] = lambda entry: 1) -> None:
        self._limit, self._size_of = limit, size
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._making: dict[Hashable, tuple[threading.RLock, int]] = {}  # lock, threads that use it
        self._lock = threading.Lock()
        self._cleared = 0  # how often: what was being made then is not kept
        self.size = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The entry at ``key``, made if it is not there. Threads that ask for the same key wait for the one that makes
        it; other keys are not blocked. An exception of ``make`` is passed on and leaves no entry."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        with self._only_one(key):
            with self._lock:
                if key in self._entries:  # another thread made it
                    self._entries.move_to_end(key)
                    return self._entries[key][0]
                cleared = self._cleared
            entry = make()
            self._put(key, entry, cleared)
            return entry

    def clear(self) -> None:
        """Drops all entries."""
        with self._lock:
            self._entries.clear()
            self.size = 0
            self._cleared += 1

    def drop(self, stale: Callable[[Any], bool]) -> None:
        """Drops the entries of whose keys ``stale`` is true."""
        with self._lock:
            for key in [key for key in self._entries if stale(key)]:
                self._drop(key)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def _put(self, key: Hashable, entry: T, cleared: int) -> None:
        size = self._size_of(entry)
        with self._lock:
            if cleared != self._cleared:
                return
            self._entries[key] = entry, size
            self.size += size
            limit = max(self._limit(), 0)
            if size > limit:
                self._drop(key)
            while self.size > limit:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        self.size -= self._entries.pop(key)[1]

    @contextlib.contextmanager
    def _only_one(self, key: Hashable) -> Iterator[None]:
        """One thread at a time per key; the lock is dropped with its last user."""
        with self._lock:
            lock, users = self._making.get(key, (threading.RLock(), 0))
            self._making[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._making[key]
                if users == 1:
                    del self._making[key]
                else:
                    self._making[key] = lock, users - 1


class LRU(Cache[T]):
    """A cache of at most ``count()`` entries."""

    def __init__(self, count: Callable[[], int]) -> None:
        super().__init__(count)


class Lazy(Generic[T]):
    """A value that is computed when it is first needed, and its key: equal keys mean equal values.

    cache: where the value is kept and looked for by its key; without one, it is kept here.
    """

    def __init__(self, key: Hashable, make: Callable[[], T], cache: Cache[T] | None = None) -> None:
        self.key = key
        self._make, self._cache = make, cache
        self._value: Any = _MISSING

    def __call__(self) -> T:
        """The value."""
        if self._cache is not None:
            return self._cache.get(self.key, self._make)
        if self._value is _MISSING:
            self._value = self._make()
        value: T = self._value
        return value


_MISSING = object()
