"""Server-sent events (HTML, section 9.2): one thread reads what is new, for all clients that follow.

A stream only knows its cursor. It takes what comes after that from the events that the thread read last, or
from the database if it is further behind. So a client may be new, slow, or come back after a restart.
"""

import re
import select
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple, Self
from uuid import UUID

from kit.errors import Unavailable

MEDIA_TYPE = "text/event-stream"
POLL = 0.5  # seconds until what another process stored is noticed
LOOK = 0.1  # seconds until it is noticed that the process stops
GAP = 0.05  # seconds between two reads; under load each finds many changes
RETRY = 1.0  # seconds until a stream reads again after the database could not be read
HEARTBEAT = 15.0  # seconds
STUCK = 10.0  # seconds in which a client must have read a chunk
ENDING = 1.0  # the same when the process stops
PAGE = 100  # events in one read, and in one chunk
RECENT = 1000  # events that are kept in memory

Cursor = tuple[int, UUID]  # when it changed, in microseconds, and the id of what changed
FIRST: Cursor = (0, UUID(int=0))
LAST: Cursor = (2**63 - 1, UUID(int=2**128 - 1))


class Change(NamedTuple):
    """What `read` finds. A stream follows one topic, or all."""

    cursor: Cursor
    topic: Any
    item: Any


class Event(NamedTuple):
    """A change as clients get it."""

    cursor: Cursor
    topic: Any
    text: bytes


Read = Callable[[Cursor, int, Any], list[Change]]  # at most so many after a cursor, of a topic or of all
Working = Callable[[], AbstractContextManager[None]]


def to_text(cursor: Cursor) -> str:
    """A cursor as the id of an event."""
    return f"{cursor[0]}-{cursor[1].hex}"


def from_text(text: str) -> Cursor:
    """The cursor that an id stands for; raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,19})-([0-9a-f]{32})", text)
    if not found or int(found[1]) > LAST[0]:
        raise ValueError(f"'{text:.80}' is not the id of an event")
    return int(found[1]), UUID(found[2])


class Stream:
    """The events of one client, as chunks that the server sends. It must be closed."""

    def __init__(
        self,
        follower: "Follower",
        cursor: Cursor,
        topic: Any,
        working: Working,
        connection: socket.socket | None,
    ):
        self.cursor, self.topic, self.working = cursor, topic, working
        self.sending_since = 0.0  # time.monotonic(); 0: it waits for events
        self.gone = False  # the client has closed its connection
        self.connection = connection
        self._follower, self._chunks = follower, self._generate()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        self.sending_since = 0.0
        try:
            return next(self._chunks)
        finally:
            self.sending_since = time.monotonic()

    def _generate(self) -> Iterator[bytes]:
        # Bottle sends no head before the first chunk. The id is where a client goes on that gets no event.
        yield f": the stream begins\nid: {to_text(self.cursor)}\n\n".encode()
        while not (self.gone or self._follower.ended):
            yield b"".join(self._follower.wait(self)) or b":\n\n"

    def blocked(self, patience: float) -> bool:
        """True if the client has not read a chunk for so many seconds."""
        since = self.sending_since
        return bool(since) and time.monotonic() - since > patience

    def cut_off(self) -> None:
        """Break off the connection, so that a thread that is blocked in it goes on."""
        if self.connection:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give its place back."""
        self._follower.leave(self)


class Follower:
    """Follows what changes while it is entered as a context manager.

    `name` is the name of the events, `encode` makes their data (one line), `newest` is the cursor of the
    newest change. `places` is how many requests may wait or follow. `stopping` tells whether the process is
    about to stop. `read` and `newest` may raise Unavailable.
    """

    def __init__(
        self,
        name: str,
        read: Read,
        newest: Callable[[], Cursor],
        encode: Callable[[Any], bytes],
        places: threading.Semaphore,
        stopping: Callable[[], bool],
    ):
        self._name, self._read, self._newest, self._encode = name, read, newest, encode
        self._places, self._stopping = places, stopping
        self._streams: set[Stream] = set()
        self._recent: list[Event] = []
        # `_recent` holds everything after `_since`, up to `_position`. At first it holds nothing.
        self._since, self._position = LAST, FIRST
        self._news = threading.Condition()  # also guards all of these
        self._due = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End all streams, and the thread."""
        self._stopped = True
        self._due.set()
        self._thread.join(3)

    @property
    def following(self) -> int:
        """How many clients follow."""
        return len(self._streams)

    @property
    def ended(self) -> bool:
        """True once streams have to end."""
        return self._stopped or self._stopping()

    def wake(self) -> None:
        """Something has changed. This costs nothing while there are no clients."""
        if self._streams:
            self._due.set()

    # Called by requests

    def follow(
        self,
        cursor: Cursor | None,
        topic: Any = None,
        working: Working = nullcontext,
        connection: socket.socket | None = None,
    ) -> Stream:
        """A stream of what changes after `cursor`, or from now on; raises Unavailable.

        It reads the database in the context `working`. `connection` is the client's.
        """
        stream = Stream(self, cursor or self._newest(), topic, working, connection)
        if not self._places.acquire(blocking=False):
            raise Unavailable("Too many requests wait or follow already.")
        with self._news:
            self._streams.add(stream)
        self._due.set()
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        with self._news:
            if stream in self._streams:
                self._streams.remove(stream)
                self._places.release()

    def wait(self, stream: Stream) -> list[bytes]:
        """The next events of a stream, or none after HEARTBEAT; moves its cursor."""
        until = time.monotonic() + HEARTBEAT
        while not (self.ended or stream.gone) and (left := until - time.monotonic()) > 0:
            if events := self._take(stream):
                return events
            with self._news:
                self._news.wait_for(
                    lambda: self._position > stream.cursor or self.ended or stream.gone, left
                )
        return []

    def _take(self, stream: Stream) -> list[bytes]:
        """The next events of a stream that are there already, at most PAGE; moves its cursor."""
        with self._news:
            position, recent = self._position, stream.cursor >= self._since
            if recent:
                start = bisect_right(self._recent, stream.cursor, key=lambda event: event.cursor)
                found = self._recent[start : start + PAGE]
        if not recent:
            try:
                with stream.working():
                    found = self._encoded(self._read(stream.cursor, PAGE, stream.topic))
            except Unavailable:
                with self._news:
                    self._news.wait(RETRY)
                return []
            if len(found) < PAGE:  # it has everything up to what the thread had read before
                stream.cursor = max(stream.cursor, position)
        if found:
            stream.cursor = max(stream.cursor, found[-1].cursor)
        return [event.text for event in found if stream.topic in (None, event.topic)]

    def _encoded(self, changes: list[Change]) -> list[Event]:
        head = f"event: {self._name}\nid: {{}}\ndata: "
        return [
            Event(cursor, topic, head.format(to_text(cursor)).encode() + self._encode(item) + b"\n\n")
            for cursor, topic, item in changes
        ]

    # The thread

    def _work(self) -> None:
        next_read = 0.0
        while self._streams or not self._stopped:
            with self._news:
                if not self._streams:  # begin anew with the next one
                    self._recent, self._since, self._position = [], LAST, FIRST
            due = self._due.wait(LOOK if self._streams else None)
            self._due.clear()
            self._look_after_streams()
            if self._streams and not self.ended and (due or time.monotonic() >= next_read):
                self._read_on()
                next_read = time.monotonic() + POLL
                time.sleep(GAP)

    def _read_on(self) -> None:
        """Read what is new, for all streams."""
        with suppress(Unavailable):  # it will be read at the next POLL
            if self._since == LAST:
                self._add([], self._newest())
            while changes := self._read(self._position, PAGE, None):
                self._add(self._encoded(changes), changes[-1].cursor)

    def _add(self, events: list[Event], position: Cursor) -> None:
        with self._news:
            if self._since == LAST:
                self._since = position
            self._recent += events
            self._position = position
            if (surplus := len(self._recent) - RECENT) > 0:
                self._since = self._recent[surplus - 1].cursor
                del self._recent[:surplus]
            self._news.notify_all()

    def _look_after_streams(self) -> None:
        """Cut off clients that have gone or do not read what they were sent; wake streams that must end."""
        with self._news:
            streams = list(self._streams)
        patience = ENDING if self.ended else STUCK
        gone = hung_up(streams)
        for stream in streams:
            stream.gone |= stream in gone
            if stream.gone or stream.blocked(patience):
                stream.cut_off()
        if gone or self.ended:
            with self._news:
                self._news.notify_all()


def hung_up(streams: Iterable[Stream]) -> set[Stream]:
    """Those whose clients have closed their connections."""
    poll, by_number = select.poll(), dict[int, Stream]()
    for stream in streams:
        if stream.connection and (number := stream.connection.fileno()) >= 0:
            by_number[number] = stream
            poll.register(number, select.POLLRDHUP)
    return {by_number[number] for number, _ in poll.poll(0)}
