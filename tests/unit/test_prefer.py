"""Prefer: wait=N holds an answer until the verdict."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from msgspec.structs import replace

import models
from calls import at_once, new_station, new_transaction, send, service, serving, settle
from events import Changes
from kit.clock import EPOCH
from models import FIRST
from programs import wait_until
from schemas import Station, Status, Transaction

HONOURED = {"wait=5": 5, "wait=0": 0, "respond-async, wait=1": 1, "wait=2, respond-async": 2, "Wait = 4": 4}
HONOURED |= {"handling=lenient; wait=3": 3, 'wait="6"': 6, "wait=31": 30, "wait=99999999999999999999": 30}
IGNORED = 'wait wait= wait=x wait=-1 wait=30x wait=3.5 wait="30 await=30 a="b,wait=1,c" \xe9'


def test_a_preference_that_is_honoured_is_named_and_others_are_ignored(api):
    new_station(api)
    key = new_transaction(api)["id"]
    for prefer in ["", "wait 30", "wait=" + "9" * 8000 + "x", "," * 8000, *IGNORED.split()]:
        answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer=prefer)
        assert (answer.status_int, answer.json["status"]) == (201, "PENDING")
        for one in (answer, send(api, "GET", f"/transactions/{key}", Prefer=prefer)):
            assert "Preference-Applied" not in one.headers
    answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer="wait=1")
    assert (answer.status_int, answer.json["status"]) == (201, "PENDING")  # it is held no longer
    assert answer.headers["Preference-Applied"] == "wait=1"
    settle(key)  # so there is nothing to wait for
    for prefer, seconds in HONOURED.items():
        answer = send(api, "GET", f"/transactions/{key}", Prefer=prefer)
        assert answer.json["status"] == "COMPLETED"
        assert answer.headers["Preference-Applied"] == f"wait={seconds}"


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "k"}])
def test_the_answer_is_held_until_the_verdict(api, headers):
    new_station(api)

    def create():
        return send(api, "POST", "/transactions", {"station_id": 1}, Prefer="wait=30", **headers)

    with ThreadPoolExecutor() as pool:
        held = pool.submit(at_once, 2, create)
        rows = 1 if headers else 2
        wait_until(lambda: len(api.get("/transactions").json["items"]) == rows, "both are stored")
        assert not held.done()
        for stored in api.get("/transactions").json["items"]:
            settle(stored["id"], "ERROR")
        answers = held.result(60)
    assert sorted(answer.status_int for answer in answers) == ([200, 201] if headers else [201, 201])
    for answer in answers:
        assert answer.json["status"] == "ERROR"
        assert answer.headers["Preference-Applied"] == "wait=30"
        assert answer.json == api.get(answer.headers["Location"]).json


def test_past_the_places_an_answer_comes_at_once(tmp_path):
    with serving(tmp_path, waits=1) as api, ThreadPoolExecutor() as pool:
        new_station(api)
        key = new_transaction(api)["id"]
        held = pool.submit(send, api, "GET", f"/transactions/{key}", Prefer="wait=30")
        wait_until(lambda: service().changes.clients["waits"], "it waits")
        answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer="wait=30")
        assert (answer.status_int, answer.json["status"]) == (201, "PENDING")
        assert "Preference-Applied" not in answer.headers
        assert answer.headers["Retry-After"] == "1"
        for method in ("GET", "HEAD"):
            answer = send(api, method, "/events")
            assert (answer.status_int, answer.headers["Retry-After"]) == (503, "5")
        settle(key)
        assert held.result(60).json["status"] == "COMPLETED"
        wait_until(lambda: not service().changes.clients["waits"], "its place is free")
        assert not service().changes._waits  # nothing is kept of it
        assert send(api, "HEAD", "/events").status_int == 200


def test_what_is_stored_is_the_answer_while_postgresql_takes_no_new_connections(tmp_path, postgres):
    url = postgres.fresh()
    allow = f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS "
    with serving(tmp_path, database_url=url) as api:
        new_station(api)
        postgres.execute(allow + "false")
        service().store.database.close_idle()  # the ledger keeps its own
        try:
            answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer="wait=5")
        finally:
            postgres.execute(allow + "true")
        assert (answer.status_int, answer.json["status"]) == (201, "PENDING")
        assert answer.headers["Retry-After"] == "1"
        assert "Preference-Applied" not in answer.headers
        assert api.get(answer.headers["Location"]).json == answer.json


def test_a_wait_is_not_answered_with_a_change_that_was_read_before_its_retry():
    expired = Transaction(
        FIRST[1], Station(1, "Teste"), Status.EXPIRED, EPOCH, EPOCH + timedelta(1), 1, None, None, None, None
    )
    pending = replace(expired, status=Status.PENDING, updated=EPOCH + timedelta(2))
    completed = replace(expired, status=Status.COMPLETED, updated=EPOCH + timedelta(3))

    async def play() -> Transaction:
        pages = [[], [expired], [completed]]

        async def read(function, *_):
            if function is models.known_changes:
                return FIRST, FIRST
            if function is models.get_transaction:
                return pending
            found = pages.pop(0) if pages else []
            await asyncio.sleep(0)  # the wait begins while `expired` is on its way
            return found, FIRST

        changes = Changes(read, bytes, 9, asyncio.get_running_loop())
        return await changes.wait(pending, 60)

    assert asyncio.run(play()) == completed
