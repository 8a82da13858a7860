"""Clients that wait or follow: what wakes them, what they get, and how many there may be."""

import asyncio
from contextlib import aclosing, contextmanager
from uuid import UUID

import pytest

import events
import models
from calls import UNKNOWN, looping
from events import PAGE, RECENT, Changes
from following import BAD, fields
from kit.clock import EPOCH, moment
from kit.errors import NotFound, Unavailable
from models import FIRST
from programs import wait_until
from schemas import Station, Status, Transaction


class Log:
    """Takes the database's place: the transactions, each with its last change, in order."""

    def __init__(self):
        self.rows, self.reads, self.broken, self.deleted = {}, [], False, FIRST
        self.clock = 0

    def change(self, number: int, status=Status.PENDING, station: int = 1) -> UUID:
        """A transaction has this status from now on."""
        self.clock += 1
        key = UUID(int=number)
        self.rows[key] = Transaction(
            key, Station(station, "Teste"), status, EPOCH, moment(self.clock), 1, None, None, None, None
        )
        return key

    def add(self, count: int, station: int = 1) -> None:
        for _ in range(count):
            self.change(self.clock + 1, station=station)

    async def read(self, function, *values):
        self.reads.append((function.__name__, *values))
        await asyncio.sleep(0)
        if self.broken:
            raise Unavailable("broken")
        rows = sorted(self.rows.values(), key=models.cursor)
        newest = models.cursor(rows[-1]) if rows else FIRST
        if function is models.newest_change:
            return newest
        if function is models.known_changes:
            return self.deleted, max(self.deleted, newest)
        if function is models.get_transaction:
            if values[0] not in self.rows:
                raise NotFound("no")
            return self.rows[values[0]]
        after, limit, *station = values
        return [
            one
            for one in rows
            if models.cursor(one) > after and (station or [None])[0] in (None, one.station.id)
        ][:limit]


class Bench:
    def __init__(self, loop, places: int = 100):
        self.loop, self.log, self.readiness = loop, Log(), b"{}"
        self.changes = Changes(self.log.read, lambda: self.readiness, places, loop)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def do(self, coroutine):
        return self.run(coroutine).result(60)

    def wait(self, key: UUID, seconds: float = 10):
        """A client that waits."""
        before = self.changes.clients["waits"]
        waiting = self.run(self.changes.wait(self.log.rows[key], seconds))
        wait_until(lambda: self.changes.clients["waits"] > before or waiting.done(), "it waits")
        return waiting

    @contextmanager
    def following(self, cursor=None, station=None):
        """A function that returns so many transactions of a stream, or more; `began` is its first event."""
        stream = self.changes.follow(cursor, station)

        async def step():
            return await anext(stream)

        def take(count: int) -> list[int]:
            found = []
            while len(found) < count:
                events = fields(self.do(step()))
                found += [event["id"] for event in events if event["event"] == "transaction"]
            return [UUID(cursor.split("-")[1]).int for cursor in found]

        try:
            take.step = lambda: fields(self.do(step()))
            take.began, ready = take.step()
            assert ready == {"event": "ready", "data": self.readiness.decode()}
            yield take
        finally:
            self.do(stream.aclose())


@pytest.fixture
def bench():
    with looping() as loop:
        bench = Bench(loop)
        yield bench
        loop.call_soon_threadsafe(bench.changes.end)
        wait_until(lambda: not bench.changes._reader, "it has stopped reading")


def test_a_client_that_waits_gets_the_verdict(bench):
    key = bench.log.change(1)
    waiting = bench.wait(key)
    bench.log.change(1, Status.COMPLETED)
    bench.changes.wake()
    assert waiting.result(60).status is Status.COMPLETED
    assert not bench.changes._waits
    assert [name for name, *_ in bench.log.reads].count("get_transaction") == 1


def test_a_transaction_that_is_newer_than_all_that_was_read_needs_no_read_of_its_own(bench):
    bench.wait(bench.log.change(1))
    bench.log.reads.clear()
    waiting = bench.wait(bench.log.change(2))
    bench.log.change(2, Status.COMPLETED)
    bench.changes.wake()
    assert waiting.result(60).status is Status.COMPLETED
    assert {name for name, *_ in bench.log.reads} == {"changes"}


def test_a_verdict_that_another_process_stored_or_that_is_there_is_found_without_being_woken(bench):
    key = bench.log.change(1)
    waiting = bench.wait(key)
    bench.log.change(1, Status.ERROR)
    assert waiting.result(60).status is Status.ERROR
    bench.log.reads.clear()
    expired = bench.wait(bench.log.change(2, Status.EXPIRED), 30)
    assert expired.result(60).status is Status.EXPIRED
    assert all(name != "get_transaction" for name, *_ in bench.log.reads)


def test_after_its_time_a_client_gets_what_is_there(bench):
    waiting = bench.wait(bench.log.change(1), 0.1)
    assert waiting.result(60).status is Status.PENDING


def test_what_cannot_be_read_is_not_waited_for(bench):
    pending = bench.log.rows.pop(bench.log.change(1))
    bench.log.change(2)
    with pytest.raises(NotFound):
        bench.do(bench.changes.wait(pending, 30))
    bench.log.broken = True
    with pytest.raises(Unavailable):
        bench.do(bench.changes.wait(pending, 30))
    with pytest.raises(Unavailable), bench.following():
        pass
    assert bench.changes.clients.total() == 0
    bench.log.broken = False


def test_a_client_that_has_gone_gives_its_place_back(bench):
    waiting = bench.wait(bench.log.change(1))
    waiting.cancel()
    wait_until(lambda: not bench.changes.clients.total(), "its place is free")
    assert not bench.changes._waits


def test_waits_and_streams_end_when_the_service_stops(bench):
    key = bench.log.change(1)
    waiting = bench.wait(key, 30)
    stream = bench.changes.follow(None, None)

    async def rest() -> bytes:
        async with aclosing(stream):
            return b"".join([chunk async for chunk in stream])

    reading = bench.run(rest())
    wait_until(lambda: bench.changes.clients.total() == 2, "both are there")
    bench.loop.call_soon_threadsafe(bench.changes.end)
    assert waiting.result(60).status is Status.PENDING
    assert [event["event"] for event in fields(reading.result(60))] == ["begin", "ready"]
    assert bench.changes.clients.total() == 0


def test_past_the_places_a_client_is_refused_until_another_leaves(bench):
    bench.changes._places = 2
    key = bench.log.change(1)
    waiting = bench.wait(key)
    with bench.following():
        with pytest.raises(Unavailable, match="Too many"):
            bench.do(bench.changes.wait(bench.log.rows[key], 1))
        with pytest.raises(Unavailable, match="Too many"), bench.following():
            pass
    with bench.following():
        pass
    waiting.cancel()


@pytest.mark.parametrize("missed", [0, PAGE, PAGE + 1, RECENT + 1])
def test_a_client_that_comes_back_has_missed_nothing(bench, missed):
    bench.log.add(1)
    seen = models.cursor(next(iter(bench.log.rows.values())))
    bench.log.add(missed)
    with bench.following(seen) as take, bench.following(seen, 1) as other:
        assert take.began == other.began == {"event": "begin", "id": events.to_text(seen), "data": "{}"}
        bench.log.add(1)
        bench.changes.wake()
        assert take(missed + 1) == other(missed + 1) == list(range(2, missed + 3))


def test_a_slow_client_misses_nothing(bench):
    with bench.following() as slow, bench.following() as quick:
        for _ in range(3):
            bench.log.add(RECENT)
            quick(RECENT)
        assert slow(3 * RECENT) == list(range(1, 3 * RECENT + 1))


def test_a_stream_of_one_station_gets_no_other_and_learns_newer_cursors(bench, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_INTERVAL", 0.3)
    with bench.following(station=1) as take:
        bench.log.add(1)
        bench.log.add(2, station=2)
        assert take(1) == [1]
        newest = events.to_text(bench.do(bench.log.read(models.newest_change)))
        heartbeat = {"event": "heartbeat", "id": newest, "data": "{}"}
        wait_until(lambda: take.step() == [heartbeat], "it learns the newest cursor")
        assert take.step() == [heartbeat]


def test_a_client_of_a_quiet_station_that_comes_back_reads_once(bench, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_INTERVAL", 0.3)
    bench.log.add(1)
    seen = bench.do(bench.log.read(models.newest_change))
    bench.log.add(3 * RECENT, station=2)
    newest = events.to_text(bench.do(bench.log.read(models.newest_change)))
    with bench.following(seen, 1) as take:
        assert take.step() == [{"event": "heartbeat", "id": newest, "data": "{}"}]
        assert bench.log.reads.count(("changes", seen, PAGE, 1)) == 1
    assert len([values for name, *values in bench.log.reads if name == "changes" and values[2:]]) == 1


@pytest.mark.parametrize(("clock", "began"), [(0, "reset"), (2, "reset"), (3, "begin"), (10**9, "reset")])
def test_a_cursor_is_judged_by_what_the_database_has(bench, clock, began):
    bench.log.add(5)
    bench.log.deleted = (2, UUID(int=2))
    cursor = (clock, UUID(int=1))
    for station in (None, 1):
        with bench.following(cursor, station) as take:
            assert take.began["event"] == began
            assert take.began["id"] == events.to_text(FIRST if began == "reset" else cursor)
            assert take(1) == ([1, 2, 3, 4, 5] if began == "reset" else [3, 4, 5])


@pytest.mark.parametrize("after", [(2, UUID(int=2)), None])
def test_a_client_that_knows_all_that_was_deleted_misses_nothing(bench, after):
    bench.log.deleted, bench.log.clock = (2, UUID(int=2)), 2
    with bench.following(after) as take:
        assert take.began == {"event": "begin", "id": events.to_text(bench.log.deleted), "data": "{}"}
        bench.log.add(1)
        assert take(1) == [3]


def test_each_change_of_the_readiness_is_an_event(bench):
    with bench.following() as take, bench.following(station=1) as other:
        for readiness in ("no broker", "ok"):
            bench.readiness = readiness.encode()
            assert take.step() == other.step() == [{"event": "ready", "data": readiness}]
        bench.log.add(1)
        assert take(1) == other(1) == [1]


def test_without_clients_nothing_is_read(bench):
    with bench.following():
        pass
    wait_until(lambda: not bench.changes._reader, "it has stopped reading")
    bench.log.reads.clear()
    bench.log.add(3)
    bench.changes.wake()
    assert bench.log.reads == []


def test_while_the_database_is_away_a_stream_stays_and_then_goes_on(bench):
    with bench.following() as take:
        bench.log.broken = True
        bench.log.add(2)
        bench.changes.wake()
        wait_until(lambda: len(bench.log.reads) > 3, "it has tried")
        bench.log.broken = False
        assert take(2) == [1, 2]


def test_a_cursor_as_text_stands_for_itself():
    for cursor in (FIRST, (2**63 - 1, UUID(int=2**128 - 1)), (1, UUID(UNKNOWN))):
        assert events.from_text(events.to_text(cursor)) == cursor
    for text in BAD:
        with pytest.raises(ValueError, match="is not the id of an event"):
            events.from_text(text)
