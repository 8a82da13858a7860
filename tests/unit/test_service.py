"""The service as an object: without one, with one, and with another after it."""

import asyncio
import threading
import time
from queue import Full

import pytest

import app
from calls import (
    assert_problem,
    client,
    every_path,
    looping,
    new_station,
    new_transaction,
    send,
    service,
    serving,
)
from kit.threads import WAITING, Threads
from programs import wait_until

PAGES = {"/", "/static/index.html", "/swagger", "/swagger/index.html", "/openapi.json"}


def test_a_service_can_be_stopped_and_another_started(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    before = threading.active_count()
    with serving(tmp_path / "first") as api:
        new_station(api, "Teste")
        key = new_transaction(api)["id"]
    assert threading.active_count() == before
    assert send(api, "GET", "/stations").status_int == 503
    with serving(tmp_path / "second", api_token="open sesame", api_token_old="old") as api:
        assert send(api, "GET", "/stations").status_int == 401
        assert send(api, "GET", "/stations", Authorization="Bearer old").status_int == 200
        answer = send(api, "GET", "/stations", Authorization="Bearer open sesame")
        assert answer.json["items"] == []
    assert threading.active_count() == before
    with serving(tmp_path / "first") as api:
        assert send(api, "GET", f"/transactions/{key}").json["status"] == "PENDING"
        new_transaction(api)


def test_a_request_that_comes_before_the_database_is_open_waits_for_it(tmp_path):
    with serving(tmp_path, ready=False) as api:
        assert send(api, "GET", "/stations").json["items"] == []


def test_without_a_service_each_route_that_needs_one_says_how_to_start_it():
    api = client()
    asked = 0
    for path, methods in every_path().items():
        for method in set(methods) if path not in PAGES else ():
            body = {"description": "x"} if method in ("POST", "PUT", "PATCH") else None
            answer = send(api, method, path, body)
            assert_problem(answer, 503, "Not running", "`gunicorn app:app`")
            asked += 1
    assert asked >= 12
    assert {"/healthz", "/readyz", "/metrics"} < every_path().keys() - PAGES
    for path in PAGES:
        assert send(api, "GET", path).status_int == 200


def test_while_a_look_at_the_database_hangs_no_other_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "LONGEST_READ", 0.2)
    began, gate = [], threading.Event()

    def hang(database) -> str:
        began.append(time.monotonic())
        gate.wait(60)
        return "it goes on"

    with serving(tmp_path):
        running = service()

        def look():
            return asyncio.run_coroutine_threadsafe(running.look(hang), running.loop)

        for asked in [look() for _ in range(50)]:
            with pytest.raises(app.NotRead):
                asked.result(60)
        assert running.problems()["database"] == "it does not answer"
        with pytest.raises(app.NotRead):
            look().result(60)  # at once, since that is known
        assert len(began) == 1
        monkeypatch.undo()
        gate.set()
        wait_until(lambda: not running.problems()["database"], "the read has ended")
        assert look().result(60) == "it goes on"
        assert len(began) == 2


def test_only_so_many_reads_wait_for_a_thread():
    gate = threading.Event()
    with looping() as loop:

        async def fill() -> list:
            asked = [readers.call(lambda: gate.wait(60)) for _ in range(WAITING + 20)]
            refused = [future for future in asked if future.done()]
            assert 18 <= len(refused) <= 20
            assert all(isinstance(future.exception(), Full) for future in refused)
            gate.set()
            return await asyncio.gather(*(future for future in asked if future not in refused))

        readers = Threads(2, loop)
        assert all(asyncio.run_coroutine_threadsafe(fill(), loop).result(60))
        readers.close()
