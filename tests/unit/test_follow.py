"""GET /events: what a client may ask for, and the changes that it is told."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from uuid import UUID

import pytest
from webtest import TestRequest

from calls import UNKNOWN, assert_problem, new_station, new_transaction, send, service, serving, settle
from events import PAGE, from_text, to_text
from following import BAD, fields
from kit.storage import execute
from models import FIRST, delete_finished
from programs import wait_until
from schemas import Transaction


@contextmanager
def following(api, path="/events", **headers):
    """A function that returns so many transactions and their events' ids; `began` is the first event."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, chunks = TestRequest.blank(path, headers=headers).call_application(api.app)
    assert status == "200 OK"
    stream = iter(chunks)

    def take(count: int) -> list[tuple[str, dict]]:
        found = []
        while len(found) < count:
            found += [event for event in fields(next(stream)) if event["event"] == "transaction"]
        return [(event["id"], json.loads(event["data"])) for event in found]

    try:
        take.began, take.ready = fields(next(stream))
        yield take
    finally:
        chunks.close()


def test_each_change_of_a_status_is_told_with_the_transaction_as_it_was_then(api):
    new_station(api)
    with following(api) as take:
        stored = new_transaction(api)
        ((_, pending),) = take(1)
        settle(stored["id"])
        ((_, completed),) = take(1)
    assert pending == stored
    assert completed == api.get(f"/transactions/{stored['id']}").json
    assert completed["status"] == "COMPLETED"


def test_what_does_not_change_a_status_is_not_told(api):
    new_station(api)
    stored = new_transaction(api)
    with following(api) as take:
        settle(UNKNOWN)
        api.put_json("/stations/1", {"description": "other"})
        settle(stored["id"], "ERROR")
        settle(stored["id"], "COMPLETED")
        settle(stored["id"], "ERROR")
        last = new_transaction(api)
        told = [(event["id"], event["status"]) for _, event in take(2)]
    assert told == [(stored["id"], "ERROR"), (last["id"], "PENDING")]


@pytest.mark.parametrize("place", ["after", "lastEventId", "header"])
def test_a_client_goes_on_after_the_event_that_it_names(api, place):
    new_station(api)
    with following(api, f"/events?after={to_text(FIRST)}") as take:
        keys = [new_transaction(api)["id"] for _ in range(5)]
        told = take(5)
    assert [event["id"] for _, event in told] == keys
    cursor = told[1][0]
    given = {"Last_Event_ID": cursor} if place == "header" else {"path": f"/events?{place}={cursor}"}
    with following(api, **given) as take:
        assert take.began == {"event": "begin", "id": cursor, "data": "{}"}
        assert take(3) == told[2:]


def test_the_header_goes_first_as_a_browser_repeats_its_url(api):
    new_station(api)
    keys = [new_transaction(api)["id"] for _ in range(4)]
    first = to_text(FIRST)
    with following(api, f"/events?after={first}") as take:
        cursors = [cursor for cursor, _ in take(4)]
    with following(api, f"/events?after={first}&lastEventId={cursors[1]}") as take:
        assert [event["id"] for _, event in take(2)] == keys[2:]
    with following(api, f"/events?lastEventId={cursors[1]}", Last_Event_ID=cursors[2]) as take:
        assert [event["id"] for _, event in take(1)] == keys[3:]


def test_an_empty_header_is_none(api):
    new_station(api)
    new_transaction(api)
    with following(api, Last_Event_ID="") as take:
        key = new_transaction(api)["id"]
        assert [event["id"] for _, event in take(1)] == [key]


def test_one_station_can_be_followed_from_any_event_on(api):
    for _ in range(3):
        new_station(api)
    path = f"/events?after={to_text(FIRST)}&station_id="
    with following(api, f"{path}2") as two, following(api, f"{path}3") as three:
        stations = [1, 2, 2, 3, 1] * 3
        keys = [new_transaction(api, station)["id"] for station in stations]
        for take, station in ((two, 2), (three, 3)):
            wanted = [key for key, its in zip(keys, stations, strict=True) if its == station]
            told = take(len(wanted))
            assert [event["id"] for _, event in told] == wanted
            with following(api, f"/events?station_id={station}", Last_Event_ID=told[0][0]) as again:
                assert again(len(wanted) - 1) == told[1:]


def test_many_changes_of_one_commit_are_told_page_by_page(api):
    new_station(api)
    count = 3 * PAGE + 1
    rows = ", ".join(
        f"('{number:032x}', 1, 'EXPIRED', 1, 7, 1)" for number in range(1, count + 1)
    )  # all at the same time
    database = service().store.database
    columns = "id, station_id, status, created, updated, attempts"
    with database.connection_context():
        execute(database, f'INSERT INTO "transaction" ({columns}) VALUES {rows}')
    with following(api, f"/events?after={to_text(FIRST)}") as take:
        told = take(count)
    assert [UUID(event["id"]).int for _, event in told] == list(range(1, count + 1))


@pytest.mark.parametrize("cursor", [text for text in BAD if text.strip() and text.isprintable()])
def test_what_is_not_a_cursor_is_refused_by_its_name(api, cursor):
    title = "Invalid value"
    for name in ("after", "lastEventId"):
        quoted = TestRequest.blank("/events")
        quoted.GET[name] = cursor
        words = f"query.{name}: ", "the id of an event"
        assert_problem(send(api, "GET", quoted.path_qs), 422, title, *words)
    if cursor.isascii():
        answer = send(api, "GET", "/events", Last_Event_ID=cursor)
        assert_problem(answer, 422, title, "Last-Event-ID: ", "the id of an event")
        answer = send(api, "GET", f"/events?after={to_text(FIRST)}", Last_Event_ID=cursor)
        assert_problem(answer, 422, title, "Last-Event-ID: ")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("after=", "query.after: "),
        ("lastEventId=", "query.lastEventId: "),
        ("after=%20", "query.after: "),
        (f"after={to_text(FIRST)}&after={to_text(FIRST)}", "query.after: must be given only once"),
        ("station_id=0", "query.station_id: "),
        ("station_id=x", "query.station_id: "),
        ("status=PENDING", "status"),
    ],
)
def test_other_mistakes_are_refused_too(api, query, words):
    assert_problem(send(api, "GET", f"/events?{query}"), 422, "Invalid value", words)


def test_a_station_that_does_not_exist_has_no_events(api):
    assert send(api, "GET", "/events?station_id=7").status_int == 200


def test_the_answer_says_that_it_is_a_stream(api):
    answer = send(api, "GET", "/events")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in answer.headers
    begin, ready = fields(answer.body)
    assert begin == {"event": "begin", "id": to_text(FIRST), "data": "{}"}
    assert ready == {"event": "ready", "data": send(api, "GET", "/readyz").text}


def test_after_a_deletion_or_a_restore_a_stream_begins_with_reset(api):
    new_station(api)
    for _ in range(4):
        settle(new_transaction(api)["id"])
    database = service().store.database
    keys = [item["id"] for item in api.get("/transactions").json["items"]][::-1]
    with following(api, f"/events?after={to_text(FIRST)}") as take:
        told = take(4)
    cursors = [cursor for cursor, _ in told]
    with database.connection_context():
        second = from_text(cursors[1])
        delete_finished(database, second[0] + 1, FIRST, 10)
    ahead = to_text((from_text(cursors[3])[0] + 1, FIRST[1]))
    for cursor, left in ((cursors[0], keys[2:]), (ahead, keys[2:])):
        for station in ("", "&station_id=1"):
            with following(api, f"/events?after={cursor}{station}") as take:
                assert take.began == {"event": "reset", "id": to_text(FIRST), "data": "{}"}
                assert [event["id"] for _, event in take(2)] == left
    with following(api, f"/events?after={cursors[1]}") as take:
        assert take.began["event"] == "begin"
        assert [event["id"] for _, event in take(2)] == keys[2:]


def followers(api) -> str:
    return api.get("/metrics").text.partition("\nenergy2go_followers ")[2].partition("\n")[0]


def test_a_metric_counts_the_clients_that_follow(api):
    assert followers(api) == "0.0"
    with following(api), following(api):
        assert followers(api) == "2.0"
    assert send(api, "HEAD", "/events").status_int == 200
    assert followers(api) == "0.0"


def test_waits_and_streams_share_their_places(tmp_path, database_url):
    with serving(tmp_path, database_url=database_url, waits=2) as api:
        new_station(api)
        with following(api), following(api):
            answer = send(api, "GET", "/events")
            assert_problem(answer, 503, "Too many clients", "Too many clients are waiting or following")
            assert answer.headers["Retry-After"] == "5"
            assert send(api, "HEAD", "/events").status_int == 503
            answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer="wait=30")
            assert (answer.status_int, answer.headers["Retry-After"]) == (201, "1")
            assert "Preference-Applied" not in answer.headers
        assert send(api, "GET", "/events").status_int == 200


def test_a_stream_holds_neither_a_reader_nor_a_connection_to_the_database(tmp_path, database_url):
    with serving(tmp_path, database_url=database_url, threads=2) as api:
        new_station(api)
        takes = [following(api) for _ in range(30)]
        entered = [one.__enter__() for one in takes]
        for _ in range(5):
            new_transaction(api)
            for take in entered:
                take(1)
        for one in takes:
            one.__exit__(None, None, None)


def test_a_service_that_stops_ends_its_streams(tmp_path):
    with ThreadPoolExecutor() as pool:
        with serving(tmp_path) as api:
            stopping = service()

            def read() -> bytes:
                _, _, chunks = TestRequest.blank("/events").call_application(api.app)
                with closing(chunks):
                    return b"".join(chunks)

            streams = [pool.submit(read) for _ in range(3)]
            wait_until(lambda: stopping.changes.clients["streams"] == 3, "three follow")
        for stream in streams:
            assert [event["event"] for event in fields(stream.result(5))][:2] == ["begin", "ready"]
    assert stopping.changes.clients.total() == 0


def test_the_document_describes_the_stream(api):
    says = api.get("/openapi.json").json["paths"]["/events"]["get"]
    assert "text/event-stream" in says["responses"]["200"]["content"]
    assert "Last-Event-ID" in says["description"]
    assert {(one["in"], one["name"]) for one in says["parameters"]} == {
        ("query", "station_id"),
        ("query", "after"),
        ("query", "lastEventId"),
        ("header", "Last-Event-ID"),
    }
    assert Transaction.__name__ in api.get("/openapi.json").json["components"]["schemas"]
