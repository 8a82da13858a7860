"""GET /events: what a client may ask for, and the changes that it gets."""

import json
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from urllib.parse import quote
from uuid import UUID

import pytest
from webtest import TestRequest

import events
from calls import UNKNOWN, assert_problem, new_station, new_transaction, send, settle
from events import to_text
from following import BAD, fields
from kit.clock import microseconds
from models import FIRST
from postgres import BOTH
from programs import wait_until

START = f"/events?after={to_text(FIRST)}"
both = pytest.mark.parametrize("api", BOTH, indirect=True)


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
            found += [event for event in take.step() if event["event"] == "transaction"]
        return [(event["id"], json.loads(event["data"])) for event in found]

    take.step = lambda: fields(next(stream))
    try:
        take.began, _ = take.step()
        yield take
    finally:
        chunks.close()


@both
def test_each_change_of_a_status_is_an_event_with_the_transaction_as_it_was_then(api):
    new_station(api)
    with following(api) as take:
        stored = new_transaction(api)
        ((_, pending),) = take(1)
        settle(UNKNOWN)
        api.put_json("/stations/1", {"description": "other"})
        settle(stored["id"])
        ((_, completed),) = take(1)
        for status in ("COMPLETED", "ERROR"):
            settle(stored["id"], status)
        last = new_transaction(api)
        ((_, next),) = take(1)
    assert pending == stored
    assert completed == api.get(f"/transactions/{stored['id']}").json
    assert completed["status"] == "COMPLETED"
    assert next["id"] == last["id"]


def test_a_client_goes_on_after_the_newest_event_that_it_names(api):
    new_station(api)
    first = to_text(FIRST)
    with following(api, START) as take:
        keys = [new_transaction(api)["id"] for _ in range(4)]
        told = take(4)
    assert [event["id"] for _, event in told] == keys
    cursors = [cursor for cursor, _ in told]
    # A browser repeats its URL, and adds the header.
    for path, headers, seen in (
        (f"/events?after={cursors[1]}", {}, 1),
        (f"/events?lastEventId={cursors[1]}", {}, 1),
        ("/events", {"Last_Event_ID": cursors[1]}, 1),
        (f"/events?after={first}&lastEventId={cursors[1]}", {}, 1),
        (f"/events?lastEventId={cursors[1]}", {"Last_Event_ID": cursors[2]}, 2),
    ):
        with following(api, path, **headers) as take:
            assert take.began == {"event": "begin", "id": cursors[seen], "data": "{}"}
            assert take(3 - seen) == told[seen + 1 :]
    with following(api, Last_Event_ID="") as take:
        key = new_transaction(api)["id"]
        assert [event["id"] for _, event in take(1)] == [key]


def test_a_time_goes_on_from_then(api):
    new_station(api)
    made = [new_transaction(api) for _ in range(4)]
    utc = made[2]["created"]
    east = datetime.fromisoformat(utc).astimezone(timezone(timedelta(hours=2))).isoformat()
    for time in (utc, quote(east)):
        with following(api, f"/events?after={time}") as take:
            assert take.began["event"] == "begin"
            assert [event for _, event in take(2)] == made[2:]
    with following(api, "/events?after=1960-01-01T00:00:00Z&station_id=1") as take:
        assert [event for _, event in take(4)] == made
    with following(api, "/events?after=9999-12-31T23:59:59Z") as take:
        assert take.began["event"] == "begin"
        last = new_transaction(api)
        assert [event for _, event in take(1)] == [last]


@both
def test_one_station_can_be_followed_from_any_event_on(api, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_INTERVAL", 0.3)
    for _ in range(3):
        new_station(api)
    path = f"{START}&station_id="
    with following(api, f"{path}2") as two, following(api, f"{path}3") as three:
        stations = [1, 2, 2, 3, 1] * 3
        keys = [new_transaction(api, station)["id"] for station in stations]
        for take, station in ((two, 2), (three, 3)):
            wanted = [key for key, its in zip(keys, stations, strict=True) if its == station]
            told = take(len(wanted))
            assert [event["id"] for _, event in told] == wanted
            with following(api, f"/events?station_id={station}", Last_Event_ID=told[0][0]) as again:
                assert again(len(wanted) - 1) == told[1:]
    with following(api, "/events?station_id=7") as take:  # there may be one later
        other = new_transaction(api, 1)
        newest = f"{microseconds(datetime.fromisoformat(other['updated']))}-{UUID(other['id']).hex}"
        heartbeat = {"event": "heartbeat", "id": newest, "data": "{}"}
        wait_until(lambda: take.step() == [heartbeat], "it learns newer cursors, too")


MISTAKES = {
    "after=": "query.after: ",
    "lastEventId=": "query.lastEventId: ",
    "after=%20": "query.after: ",
    f"after={to_text(FIRST)}&after={to_text(FIRST)}": "query.after: must be given only once",
    "station_id=0": "query.station_id: ",
    "station_id=x": "query.station_id: ",
    "status=PENDING": "status",
}


def test_what_is_not_a_cursor_and_other_mistakes_are_refused_by_their_names(api):
    title, words = "Invalid value", "the id of an event"
    for cursor in (text for text in BAD if text.strip() and text.isprintable()):
        for name in ("after", "lastEventId"):
            quoted = TestRequest.blank("/events")
            quoted.GET[name] = cursor
            assert_problem(send(api, "GET", quoted.path_qs), 422, title, f"query.{name}: ", words)
        for path in ("/events", START) if cursor.isascii() else ():
            answer = send(api, "GET", path, Last_Event_ID=cursor)
            assert_problem(answer, 422, title, "Last-Event-ID: ", words)
    for query, word in MISTAKES.items():
        assert_problem(send(api, "GET", f"/events?{query}"), 422, title, word)


def test_the_answer_says_that_it_is_a_stream(api):
    answer = send(api, "GET", "/events")
    assert answer.headers["Content-Type"] == "text/event-stream"
    says = send(api, "GET", "/openapi.json").json["paths"]["/events"]["get"]["responses"]["200"]
    event = says["content"]["text/event-stream"]["schema"]["properties"]
    assert event["data"] == {"$ref": "#/components/schemas/Transaction"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in answer.headers
    begin, ready = fields(answer.body)
    assert begin == {"event": "begin", "id": to_text(FIRST), "data": "{}"}
    assert ready == {"event": "ready", "data": send(api, "GET", "/readyz").text}
