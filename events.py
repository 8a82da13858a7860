"""Clients that wait for a change: requests for one transaction, streams for all. One task reads for them.

A change is a transaction as it was when we read it; changes come in the order of their commits. A stream
only knows its cursor, so its client may be new, slow, or come back after a restart.
"""

import asyncio
import logging
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

import models
from kit.clock import SECOND, microseconds
from kit.errors import InvalidValue, Unavailable
from kit.requests import TIME
from kit.threads import hand_over, resolve
from models import FIRST, Cursor
from schemas import Status, Time, TooManyClients, Transaction

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
POLL_INTERVAL = 0.1  # seconds until we notice a change that another process stored
WAKE_INTERVAL = 0.05  # seconds between two chunks for a stream while more than a PAGE comes in a second
RETRY_INTERVAL = 1.0  # seconds until a stream that is behind reads again after a read failed
HEARTBEAT_INTERVAL = 15.0  # seconds without an event
PAGE = 100  # changes in one read, and events in one chunk
RECENT = 1000  # events that we keep in memory
TURN = 200  # streams that are woken at once
NONE = UUID(int=0)  # in a cursor: no transaction
Read = Callable[..., Awaitable[Any]]  # calls a function of `models` in a thread; may raise Unavailable


class Event(NamedTuple):
    cursor: Cursor
    station_id: int
    text: bytes


class Changes:
    """The clients that wait or follow, at most `places`. All of it runs in the loop, except `wake`.

    `ready` returns the body of /readyz.
    """

    def __init__(self, read: Read, ready: Callable[[], bytes], places: int, loop: asyncio.AbstractEventLoop):
        self._read, self._ready, self._places, self._loop = read, ready, places, loop
        self.clients, self._read_until = Counter(waits=0, streams=0), 0.0
        self._waits: defaultdict[UUID, dict[asyncio.Future[Any], datetime]] = defaultdict(dict)
        self._recent: list[Event] = []  # all changes between these two cursors
        self._since = self._position = FIRST
        self._due = loop.create_future()  # wakes the reader
        self._idle: dict[asyncio.Future[None], None] = {}  # each wakes a stream
        self._waking: asyncio.TimerHandle | None = None  # will wake the streams
        self._readiness = b""  # the event that describes it
        self._one_at_a_time = asyncio.Lock()  # for reads that may come in crowds, so requests get theirs
        self._reader: asyncio.Task[None] | None = None
        self._ended = False

    def wake(self) -> None:
        """Something has changed. The ledger calls this in its thread; without clients it is free."""
        if self._reader:
            hand_over(self._loop, [(self._due, None)])

    def end(self) -> None:
        """The service is about to stop: end all waits and streams."""
        self._ended = True
        resolve([(self._due, None), *((changed, None) for one in self._waits.values() for changed in one)])
        self._wake_streams()

    async def wait(self, transaction: Transaction, seconds: float) -> Transaction:
        """Wait at most this long until a transaction isn't PENDING, and return it; raises Unavailable."""
        if transaction.status is not Status.PENDING:
            return transaction
        with self._place("waits"):
            changed = self._loop.create_future()
            self._waits[transaction.id][changed] = transaction.updated
            try:
                if not self._reader or models.cursor(transaction) <= self._position:
                    await self._start_reading()
                    # Read it only now: a change that comes from here on finds this client.
                    transaction = await self._read(models.get_transaction, transaction.id)
                if transaction.status is Status.PENDING and not self._ended:
                    await asyncio.wait([changed], timeout=seconds)
                    if changed.done():
                        return changed.result() or transaction
                    transaction = await self._read(models.get_transaction, transaction.id)
                return transaction
            finally:
                del self._waits[transaction.id][changed]
                if not self._waits[transaction.id]:
                    del self._waits[transaction.id]

    async def follow(self, cursor: Cursor | None, station_id: int | None) -> AsyncGenerator[bytes, None]:
        """Stream the changes after `cursor`, or from now on. The first step may raise Unavailable."""
        with self._place("streams"):
            await self._start_reading()
            deleted, newest = await self._read(models.known_changes)
            if cursor and cursor[1] == NONE:  # a time; after the newest change, that is now
                cursor = min(cursor, newest)
            complete = cursor is None or deleted <= cursor <= newest
            cursor = (cursor or newest) if complete else FIRST
            self._look_at_readiness()
            yield block("begin" if complete else "reset", b"{}", cursor) + (readiness := self._readiness)
            heartbeat_at = self._loop.time() + HEARTBEAT_INTERVAL
            while not self._ended:
                chunk, after, deleted = await self._events(cursor, station_id)
                if complete and deleted > cursor:
                    return  # retention was faster: the client comes back and gets a reset
                complete, cursor = deleted <= cursor, after
                if not chunk and self._loop.time() >= heartbeat_at:
                    chunk = block("heartbeat", b"{}", cursor)
                if chunk:
                    heartbeat_at = self._loop.time() + HEARTBEAT_INTERVAL
                if readiness != self._readiness:
                    chunk += (readiness := self._readiness)
                if chunk:
                    yield chunk
                elif cursor >= self._position and not self._ended:
                    await self._news(heartbeat_at)

    async def _news(self, until: float) -> None:
        """Wait until there is news for streams, or until this loop time."""
        news = self._loop.create_future()
        self._idle[news] = None
        timer = self._loop.call_at(until, resolve, [(news, None)])  # asyncio.wait takes twice as long
        try:
            await news
        finally:
            timer.cancel()
            del self._idle[news]

    @contextmanager
    def _place(self, kind: str) -> Iterator[None]:
        """Hold a place while a client waits or follows; raises Unavailable."""
        if self.clients.total() >= self._places:
            raise TooManyClients("Too many clients are waiting or following.")
        self.clients[kind] += 1
        try:
            yield
        finally:
            self.clients[kind] -= 1
            self._read_until = self._loop.time() + POLL_INTERVAL

    async def _events(self, cursor: Cursor, station_id: int | None) -> tuple[bytes, Cursor, Cursor]:
        """At most PAGE events after a cursor, where to go on, and up to where retention deleted others."""
        position, deleted = self._position, FIRST
        if cursor >= self._since:
            start = bisect_right(self._recent, cursor, key=lambda event: event.cursor)
            found = self._recent[start : start + PAGE]
        else:
            try:
                async with self._one_at_a_time:
                    changes, deleted = await self._read(models.next_changes, cursor, PAGE, station_id)
            except Unavailable:
                await asyncio.sleep(RETRY_INTERVAL)
                return b"", cursor, FIRST
            found = encoded(changes)
            if len(found) < PAGE:  # these are all the changes up to `position`
                cursor = max(cursor, position)
        if found:
            cursor = max(cursor, found[-1].cursor)
        texts = [event.text for event in found if station_id in (None, event.station_id)]
        return b"".join(texts), cursor, deleted

    async def _start_reading(self) -> None:
        """Start the task that reads all changes from here on, unless it is running."""
        if self._reader:
            return
        async with self._one_at_a_time:
            if self._reader is None:  # another client may have been faster
                _, newest = await self._read(models.known_changes)
                self._recent, self._since, self._position = [], newest, newest
                self._reader = self._loop.create_task(self._read_on())

    async def _read_on(self) -> None:
        """Read changes until there has been no client for POLL_INTERVAL."""
        while not self._ended and (self.clients.total() or self._loop.time() < self._read_until):
            self._due = self._loop.create_future()
            try:
                if self.clients["streams"]:
                    self._look_at_readiness()
                while self._add(*await self._read(models.next_changes, self._position, PAGE)):
                    pass
            except Unavailable:
                pass  # try again after POLL_INTERVAL
            except Exception:
                log.exception("changes cannot be read", extra={"event": "changes_failed"})
            await asyncio.wait([self._due], timeout=POLL_INTERVAL)
        self._reader = None

    def _add(self, changes: list[Transaction], deleted: Cursor) -> bool:
        """Hand changes to those clients that they concern; returns True if there may be more."""
        position = self._position
        if not changes and deleted <= position:
            return False
        settled = [change for change in changes if change.status is not Status.PENDING]
        for one in settled:  # a change may have been read before the retry that its client waits for
            waits = self._waits.get(one.id, {}).items()
            resolve([(changed, one) for changed, since in waits if since < one.updated])
        self._position = max([deleted, *map(models.cursor, changes[-1:])])
        if deleted > position or not self.clients["streams"]:  # streams read these themselves
            self._recent, self._since, changes = [], self._position, []
        self._recent += encoded(changes)
        if (surplus := len(self._recent) - RECENT) > 0:
            self._since = self._recent[surplus - 1].cursor
            del self._recent[:surplus]
        if not self._waking:
            busy = len(self._recent) > PAGE and self._recent[-PAGE].cursor[0] > self._position[0] - SECOND
            self._waking = self._loop.call_later(WAKE_INTERVAL if busy else 0, self._wake_streams)
        return True

    def _wake_streams(self, rest: Sequence[asyncio.Future[None]] = ()) -> None:
        """Wake all streams, a few hundred per turn, so that the loop answers requests in between."""
        self._waking, idle = None, rest or [*self._idle]
        resolve([(news, None) for news in idle[:TURN]])
        if idle[TURN:]:
            self._loop.call_soon(self._wake_streams, idle[TURN:])

    def _look_at_readiness(self) -> None:
        """Announce the body of /readyz to all streams if it has changed."""
        before, self._readiness = self._readiness, block("ready", self._ready())
        if self._readiness != before:
            self._wake_streams()


def encoded(changes: list[Transaction]) -> list[Event]:
    """Changes as events."""
    cursors = map(models.cursor, changes)
    return [
        Event(cursor, change.station.id, block("transaction", msgspec.json.encode(change), cursor))
        for cursor, change in zip(cursors, changes, strict=True)
    ]


def block(name: str, data: bytes, cursor: Cursor | None = None) -> bytes:
    """A server-sent event (HTML, section 9.2)."""
    head = f"event: {name}\nid: {to_text(cursor)}\n" if cursor else f"event: {name}\n"
    return b"%bdata: %b\n\n" % (head.encode(), data)


def to_text(cursor: Cursor) -> str:
    """A cursor as an event id."""
    return f"{cursor[0]}-{cursor[1].hex}"


def goes_on(given: dict[str, Any]) -> Cursor | None:
    """The cursor of the last of these ids, or of a time, before any transaction; raises InvalidValue."""
    cursor = None
    for name, text in given.items():
        found = re.fullmatch(r"([0-9]{1,19})-([0-9a-f]{32})", text or "")
        try:
            if found and int(found[1]) < 2**63:
                cursor = int(found[1]), UUID(found[2])
            elif text:
                cursor = max(0, microseconds(msgspec.convert(text, Time))), NONE
        except msgspec.ValidationError:
            wrong = f"{name}: '{{}}' is not the id of an event. It may also be a time: it {TIME}."
            raise InvalidValue(wrong, f"{text:.80}") from None
    return cursor
