"""A follower of a log in memory, for tests of streams without a service."""

import threading
from uuid import UUID

from kit.errors import Unavailable
from kit.events import FIRST, LAST, Change, Cursor, Follower, Stream
from programs import wait_until


class Log:
    """Takes the database's place: changes in order, with the number of reads and of clients at work."""

    def __init__(self):
        self.changes, self.reads, self.broken = [], [], False

    def add(self, *topics) -> list[str]:
        """One more change for each of these topics; returns their items."""
        first = len(self.changes) + 1
        new = [
            Change((number, UUID(int=number)), topic, str(number))
            for number, topic in enumerate(topics, first)
        ]
        self.changes += new
        return [change.item for change in new]

    def newest(self) -> Cursor:
        return self.changes[-1].cursor if self.changes else FIRST

    def read(self, cursor: Cursor, limit: int, topic) -> list[Change]:
        self.reads.append((cursor, threading.current_thread().name))
        if self.broken:
            raise Unavailable("broken")
        return [c for c in self.changes if c.cursor > cursor and topic in (None, c.topic)][:limit]


class Bench:
    """A follower of a log; closes the streams that it made."""

    def __init__(self, places: int = 100):
        self.log, self.ended = Log(), False
        self.places = threading.BoundedSemaphore(places)
        self.follower = Follower(
            "change", self.log.read, self.log.newest, str.encode, self.places, lambda: self.ended
        )

    def follow(self, cursor=None, **options) -> Stream:
        """A stream that has sent its first chunk."""
        stream = self.follower.follow(cursor, **options)
        assert next(stream).startswith(b": ")
        return stream

    def reading(self) -> None:
        """Wait until the thread reads for all clients."""
        wait_until(lambda: self.follower._since != LAST, "it reads")

    def add(self, *topics) -> list[str]:
        items = self.log.add(*topics)
        self.follower.wake()
        return items
