"""What has changed, for clients that wait or follow. One task reads it for all of them.

A change is a transaction as it was when we read it; changes come in the order of their commits. A stream of
events only knows its cursor, so its client may be new, slow, or come back after a restart.
"""

import asyncio
import logging
import re
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

import models
from kit.errors import Unavailable
from models import FIRST, Cursor
from schemas import Status, Transaction

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
POLL = 0.1  # seconds until we notice what another process has stored
GAP = 0.05  # seconds between two reads while nobody waits; under load each finds many changes
RETRY = 1.0  # seconds until a stream that is behind reads again after the database could not be read
HEARTBEAT = 15.0  # seconds
PAGE = 100  # changes in one read, and events in one chunk
RECENT = 1000  # events that we keep in memory
TOO_MANY = "Too many requests wait or follow already."


class Event(NamedTuple):
    cursor: Cursor
    station_id: int
    text: bytes


class Changes:
    """The clients that wait or follow, at most `places`. All of it runs in the loop, except `wake`.

    `read` calls a function of `models` in a thread; it may raise Unavailable.
    """

    def __init__(self, read: Callable[..., Awaitable[Any]], places: int, loop: asyncio.AbstractEventLoop):
        self._read, self._places, self._loop = read, places, loop
        self.waiters = self.streams = 0
        self._waiting: dict[UUID, set[asyncio.Future[Transaction | None]]] = {}
        self._recent: list[Event] = []  # all changes between these two cursors
        self._since = self._position = FIRST
        self._due, self._news = asyncio.Event(), asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._ended = False

    def wake(self) -> None:
        """Something has changed. The ledger calls this in its thread; without clients it costs nothing."""
        if self._reader:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._due.set)

    def end(self) -> None:
        """The service is about to stop: end all waits and streams."""
        self._ended = True
        for woken in self._waiting.values():
            resolve(woken, None)
        self._tell()

    async def wait(self, transaction_id: UUID, seconds: float) -> Transaction:
        """A transaction once it is not PENDING, or as it is after so many seconds; raises Unavailable."""
        self._check_places()
        self.waiters += 1
        changed = self._loop.create_future()
        self._waiting.setdefault(transaction_id, set()).add(changed)
        try:
            await self._start_reading()
            # Read it only now: a change that comes from here on finds this client.
            transaction: Transaction = await self._read(models.get_transaction, transaction_id)
            if transaction.status is Status.PENDING and not self._ended:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        return await changed or transaction
                transaction = await self._read(models.get_transaction, transaction_id)
            return transaction
        finally:
            self.waiters -= 1
            self._waiting[transaction_id].discard(changed)
            if not self._waiting[transaction_id]:
                del self._waiting[transaction_id]

    async def follow(self, cursor: Cursor | None, station_id: int | None) -> AsyncGenerator[bytes, None]:
        """A stream of what changes after `cursor`, or from now on; raises Unavailable. It must be closed."""
        self._check_places()
        self.streams += 1  # a place from here on, also while we read
        try:
            cursor = cursor or await self._read(models.newest_change)
            await self._start_reading()
        except BaseException:
            self.streams -= 1
            raise
        stream = self._stream(cursor, station_id)
        await anext(stream)  # from here on closing it gives the place back
        return stream

    def _check_places(self) -> None:
        if self.waiters + self.streams >= self._places:
            raise Unavailable(TOO_MANY)

    async def _stream(self, cursor: Cursor, station_id: int | None) -> AsyncGenerator[bytes, None]:
        try:
            yield b""
            told = cursor  # where a client goes on that gets no event
            yield f": the stream begins\nid: {to_text(cursor)}\n\n".encode()
            while not self._ended:
                chunk, cursor = await self._next(cursor, station_id)
                if self._ended and not chunk:
                    break
                if not chunk:  # it is quiet; after other stations' changes there is a newer cursor to tell
                    chunk = b":\n" if cursor == told else f"id: {to_text(cursor)}\n\n".encode()
                    told = cursor
                yield chunk
        finally:
            self.streams -= 1

    async def _next(self, cursor: Cursor, station_id: int | None) -> tuple[bytes, Cursor]:
        """The events after a cursor, at most PAGE, or none after HEARTBEAT; and the cursor to go on from."""
        until = self._loop.time() + HEARTBEAT
        while not self._ended and self._loop.time() < until:
            news, position = self._news, self._position
            if cursor >= self._since:
                start = bisect_right(self._recent, cursor, key=lambda event: event.cursor)
                found = self._recent[start : start + PAGE]
            else:
                try:
                    found = encoded(await self._read(models.changes, cursor, PAGE, station_id))
                except Unavailable:
                    await asyncio.sleep(RETRY)
                    continue
                if len(found) < PAGE:  # it has everything up to what had been read before
                    cursor = max(cursor, position)
            if found:
                cursor = max(cursor, found[-1].cursor)
            if text := b"".join(event.text for event in found if station_id in (None, event.station_id)):
                return text, cursor
            if cursor >= self._position:
                await happens(news, until - self._loop.time())
        return b"", cursor

    async def _start_reading(self) -> None:
        """See to it that a task reads all changes from here on."""
        if self._reader is None:
            newest = await self._read(models.newest_change)
            if self._reader is None:  # another client may have been faster
                self._recent, self._since, self._position = [], newest, newest
                self._reader = self._loop.create_task(self._read_on())

    async def _read_on(self) -> None:
        """Read what is new until nobody waits or follows."""
        idle = False
        while self.waiters or self.streams or not idle:
            self._due.clear()
            try:
                while changes := await self._read(models.changes, self._position, PAGE):
                    self._add(changes)
            except Unavailable:
                pass  # we try again after POLL
            except Exception:
                log.exception("changes cannot be read", extra={"event": "changes_failed"})
            if self.streams and not self.waiters:
                await asyncio.sleep(GAP)
            idle = not await happens(self._due, POLL)
        self._reader = None

    def _add(self, changes: list[Transaction]) -> None:
        """Hand over what has changed."""
        for transaction in changes:
            if transaction.status is not Status.PENDING:
                resolve(self._waiting.get(transaction.id, ()), transaction)
        self._position = models.cursor(changes[-1])
        if not self.streams:
            self._recent, self._since = [], self._position
            return
        self._recent += encoded(changes)
        if (surplus := len(self._recent) - RECENT) > 0:
            self._since = self._recent[surplus - 1].cursor
            del self._recent[:surplus]
        self._tell()

    def _tell(self) -> None:
        """Wake all streams."""
        news, self._news = self._news, asyncio.Event()
        news.set()


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False if it does not happen within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def resolve(woken: Iterable[asyncio.Future[Transaction | None]], transaction: Transaction | None) -> None:
    """Wake these clients."""
    for changed in woken:
        if not changed.done():
            changed.set_result(transaction)


def encoded(changes: list[Transaction]) -> list[Event]:
    """Changes as server-sent events (HTML, section 9.2)."""
    events = []
    for transaction in changes:
        cursor = models.cursor(transaction)
        head = f"event: transaction\nid: {to_text(cursor)}\ndata: ".encode()
        text = head + msgspec.json.encode(transaction) + b"\n\n"
        events.append(Event(cursor, transaction.station.id, text))
    return events


def to_text(cursor: Cursor) -> str:
    """A cursor as the id of an event."""
    return f"{cursor[0]}-{cursor[1].hex}"


def from_text(text: str) -> Cursor:
    """The cursor that an id stands for; raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,19})-([0-9a-f]{32})", text)
    if not found or int(found[1]) >= 2**63:
        raise ValueError(f"'{text:.80}' is not the id of an event")
    return int(found[1]), UUID(found[2])
