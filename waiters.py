"""Those who wait for a verdict: requests with `Prefer: wait`, woken by the commit that stores it."""

import threading
from collections.abc import Iterable
from uuid import UUID

import models
from schemas import Status


class Waiters:
    """At most `most` of them, so that they never hold all of the request threads."""

    def __init__(self, most: int):
        self._most = most
        self._events: dict[UUID, list[threading.Event]] = {}
        self._lock = threading.Lock()

    def keys(self) -> list[UUID]:
        """The transactions that somebody waits for."""
        return list(self._events)

    def wait(self, key: UUID, seconds: float) -> bool:
        """Wait until a transaction is no longer PENDING, `seconds` at most; False if too many wait already."""
        event = threading.Event()
        with self._lock:
            if sum(map(len, self._events.values())) >= self._most:
                return False
            self._events.setdefault(key, []).append(event)
        try:
            # Its verdict may have come before this was listed.
            if models.statuses([key]).get(key) is Status.PENDING:
                event.wait(seconds)
        finally:
            with self._lock:
                self._events[key].remove(event)
                if not self._events[key]:
                    del self._events[key]
        return True

    def wake(self, keys: Iterable[UUID]) -> None:
        """Wake those who wait for one of these."""
        with self._lock:
            for key in keys:
                for event in self._events.get(key, ()):
                    event.set()
