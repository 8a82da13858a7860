"""Requests that wait for something to change, by its key. None of them holds a connection or a lock."""

import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Idle = Callable[[], AbstractContextManager[None]]


class Waiting(Generic[K]):
    """`places` is how many requests may wait; others share it."""

    def __init__(self, places: threading.Semaphore):
        self._places, self._lock = places, threading.Lock()
        self._events: dict[K, list[threading.Event]] = {}

    def __len__(self) -> int:
        """How many requests wait."""
        with self._lock:
            return sum(map(len, self._events.values()))

    @property
    def keys(self) -> list[K]:
        """What they wait for."""
        with self._lock:
            return list(self._events)

    def wait(self, key: K, seconds: float, needed: Callable[[], bool], idle: Idle) -> bool:
        """Wait until this key is woken, at most `seconds`, in the context `idle`; False without a place.

        `needed` is asked first, because the change may have come before this request was listed.
        """
        if not self._places.acquire(blocking=False):
            return False
        event = threading.Event()
        with self._lock:
            self._events.setdefault(key, []).append(event)
        try:
            if needed():
                with idle():
                    event.wait(seconds)
        finally:
            with self._lock:
                self._events[key].remove(event)
                if not self._events[key]:
                    del self._events[key]
            self._places.release()
        return True

    def wake(self, keys: Iterable[K]) -> None:
        """Wake the requests that wait for these."""
        with self._lock:
            for key in keys:
                for event in self._events.get(key, ()):
                    event.set()
