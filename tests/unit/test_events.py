"""Streams of events: what a client gets, where it goes on, and when its stream ends."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from uuid import UUID

import pytest

from calls import UNKNOWN
from following import BAD, fields
from kit import events
from kit.errors import Unavailable
from kit.events import FIRST, PAGE, Stream
from log import Bench
from programs import wait_until


@pytest.fixture
def bench():
    bench = Bench()
    with bench.follower:
        yield bench
        for stream in list(bench.follower._streams):
            stream.close()


def take(stream: Stream, count: int) -> list[str]:
    """The data of the next events, so many or more."""
    found = []
    while len(found) < count:
        found += [event["data"] for event in fields(next(stream)) if "data" in event]
    return found


# Chunks


def test_a_stream_begins_with_a_comment_and_where_to_go_on(bench):
    bench.log.add(1)
    with closing(bench.follower.follow(None)) as stream:
        first = next(stream)
    assert first.startswith(b": ")
    assert fields(first) == [{"id": events.to_text(bench.log.newest())}]


def test_a_change_is_an_event_with_a_name_an_id_and_one_line_of_data(bench):
    stream = bench.follow()
    bench.add(1)
    assert next(stream) == b"event: change\nid: 1-00000000000000000000000000000001\ndata: 1\n\n"


def test_without_changes_there_is_a_comment(bench, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT", 0.01)
    stream = bench.follow()
    assert next(stream) == b":\n\n"
    bench.add(1)
    assert take(stream, 1) == ["1"]


def test_each_client_gets_every_change_once_and_in_order(bench):
    streams = [bench.follow() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        found = pool.map(lambda stream: take(stream, 1000), streams)
        added = [item for _ in range(100) for item in bench.add(*range(10))]
        assert list(found) == [added] * 5


def test_a_stream_of_one_topic_gets_no_other(bench):
    one, other = bench.follow(topic=1), bench.follow(topic=2)
    bench.add(1, 2, 1, 1, 2)
    assert take(one, 3) == ["1", "3", "4"]
    assert take(other, 2) == ["2", "5"]


# Where a client goes on


@pytest.mark.parametrize("topic", [None, 1])
@pytest.mark.parametrize("missed", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * events.RECENT])
def test_a_client_that_comes_back_has_missed_nothing(bench, topic, missed):
    bench.log.add(1)
    seen = bench.log.newest()
    bench.log.add(2)
    added = bench.log.add(*[1] * missed)
    stream = bench.follow(seen, topic=topic)
    added += bench.add(1)
    found = take(stream, len(added) + (topic is None))
    assert found == (["2", *added] if topic is None else added)


def test_a_slow_client_misses_nothing(bench):
    slow, quick = bench.follow(), bench.follow()
    added = []
    for _ in range(4):
        added += bench.add(*[1] * events.RECENT)
        take(quick, events.RECENT)
    assert take(slow, len(added)) == added


def test_clients_that_keep_up_cost_no_read_of_their_own(bench):
    streams = [bench.follow() for _ in range(20)]
    bench.reading()
    bench.log.reads.clear()
    for _ in range(5):
        bench.add(1)
        for stream in streams:
            take(stream, 1)
    assert {name for _, name in bench.log.reads} == {"follower"}


def test_a_quiet_topic_is_not_read_again_from_its_beginning(bench):
    bench.log.add(*[2] * 50)
    other, quiet = bench.follow(), bench.follow(FIRST, topic=1)
    bench.reading()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, quiet, 1)
        for _ in range(3):
            bench.add(2)
            take(other, 1)
        bench.add(1)
        assert waiting.result(10) == ["54"]
    assert sum(cursor == FIRST for cursor, name in bench.log.reads if name != "follower") == 1


def test_what_another_process_stores_is_found_without_being_woken(bench):
    stream = bench.follow()
    bench.reading()
    bench.log.add(1)
    assert take(stream, 1) == ["1"]
    bench.log.add(1)
    assert take(stream, 1) == ["2"]


def test_without_clients_nothing_is_read(bench):
    first = bench.follow()
    bench.reading()
    first.close()
    wait_until(lambda: bench.follower._since == events.LAST, "it has stopped reading")
    bench.log.reads.clear()
    for _ in range(3):
        bench.add(1)
    stream = bench.follow()
    bench.add(1)
    assert take(stream, 1) == ["4"]
    assert min(cursor for cursor, _ in bench.log.reads)[0] == 3


def test_while_the_database_is_away_a_stream_stays_and_then_goes_on(bench):
    stream, late = bench.follow(), bench.follow()
    bench.add(1)
    take(stream, 1)
    bench.log.broken = True
    added = bench.add(1, 1)
    behind = bench.follow(FIRST)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(take, behind, 3)
        wait_until(lambda: any(name != "follower" for _, name in bench.log.reads), "it has tried")
        bench.log.broken = False
        assert waiting.result(10) == ["1", *added]
    assert take(stream, 2) == added
    assert take(late, 3) == ["1", *added]


def test_a_stream_that_catches_up_works_like_a_request(bench):
    inside = []

    class Working(nullcontext):
        def __enter__(self):
            inside.append(True)

    bench.log.add(*[1] * 250)
    assert len(take(bench.follow(FIRST, working=Working), 250)) == 250
    assert len(inside) == 3


# Places, and the end


def test_past_the_places_a_client_is_refused_until_another_leaves():
    bench = Bench(places=2)
    with bench.follower:
        first, second = bench.follow(), bench.follow()
        with pytest.raises(Unavailable, match="follow already"):
            bench.follow()
        first.close()
        first.close()  # gives its place back only once
        third = bench.follow()
        with pytest.raises(Unavailable):
            bench.follow()
        for stream in (second, third):
            stream.close()
    assert bench.follower.following == 0
    assert bench.places.acquire(blocking=False)


def test_a_client_that_is_refused_by_the_database_takes_no_place(bench):
    def broken():
        raise Unavailable("away")

    bench.follower._newest = broken
    with pytest.raises(Unavailable):
        bench.follow()
    assert bench.places._value == 100


def end(bench) -> None:
    bench.ended = True


def stop(bench) -> None:
    bench.follower.__exit__()


@pytest.mark.parametrize("how", [end, stop])
def test_streams_end_when_the_process_or_the_follower_stops(bench, how):
    streams = [bench.follow() for _ in range(5)]

    def rest(stream) -> bytes:
        with closing(stream):
            return b"".join(stream)

    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(rest, stream) for stream in streams]
        how(bench)
        assert {future.result(3) for future in waiting} <= {b"", b":\n\n"}


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        other.settimeout(10)
        yield one, other


def cut_off(client: socket.socket) -> bool:
    """True once the connection was broken off."""
    return client.recv(1) == b""


def test_a_client_that_does_not_read_is_cut_off(bench, pair, monkeypatch):
    monkeypatch.setattr(events, "STUCK", 0.1)
    server, client = pair
    bench.follow(connection=server)  # it has sent a chunk, and does not come back
    assert cut_off(client)


def test_a_client_that_waits_is_not_cut_off(bench, pair, monkeypatch):
    monkeypatch.setattr(events, "STUCK", 0.1)
    server, client = pair
    stream = bench.follow(connection=server)
    other = bench.follow()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, stream, 3)
        for _ in range(3):
            bench.add(1)
            take(other, 1)
        assert waiting.result(10) == ["1", "2", "3"]
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)


def test_at_the_end_a_client_that_does_not_read_is_cut_off_sooner(bench, pair):
    server, client = pair
    bench.follow(connection=server)
    bench.ended = True
    assert cut_off(client)


def test_the_stream_of_a_client_that_has_gone_ends(bench, pair):
    server, client = pair
    stream = bench.follow(connection=server)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, stream)
        client.close()
        waiting.result(5)


# Cursors


@pytest.mark.parametrize("cursor", [FIRST, events.LAST, (1_800_000_000_000_000, UUID(UNKNOWN))])
def test_a_cursor_as_text_stands_for_itself(cursor):
    assert events.from_text(events.to_text(cursor)) == cursor


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_a_cursor_is_refused(text):
    with pytest.raises(ValueError, match="is not the id of an event"):
        events.from_text(text)
