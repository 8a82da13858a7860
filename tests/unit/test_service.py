"""The service as an object: without one, with one, and with another after it."""

import asyncio
import threading

import pytest

import app
from calls import assert_problem, client, every_path, new_station, new_transaction, send, serving
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
    with serving(tmp_path / "second", api_token="open sesame") as api:
        assert send(api, "GET", "/stations").status_int == 401
        answer = send(api, "GET", "/stations", Authorization="Bearer open sesame")
        assert answer.json["items"] == []
    assert threading.active_count() == before
    with serving(tmp_path / "first") as api:
        assert send(api, "GET", f"/transactions/{key}").json["status"] == "PENDING"
        new_transaction(api)


def test_a_service_that_was_stopped_takes_nothing_more(tmp_path):
    with serving(tmp_path) as api:
        new_station(api)
        stopped = app.app.config["running"]
    with pytest.raises(app.Unavailable, match="stopping"):
        asyncio.run(stopped.ledger.create(app.Draft(1)))


def test_a_request_that_comes_before_the_database_is_open_waits_for_it(tmp_path):
    with serving(tmp_path, ready=False) as api:
        assert send(api, "GET", "/stations").json["items"] == []


def test_a_folder_that_does_not_exist_is_named_and_not_made(tmp_path):
    url = f"sqlite:///{tmp_path}/typo/energy2go.db"
    with serving(tmp_path, ready=False, database_url=url) as api:
        wait_until(lambda: "does not exist" in send(api, "GET", "/readyz").json["database"], "it says so", 5)
        answer = send(api, "POST", "/stations", {"description": "Teste"})
        assert_problem(answer, 503, "Service Unavailable", f"the folder {tmp_path}/typo does not exist")
    assert not (tmp_path / "typo").exists()


def test_without_a_service_each_route_that_needs_one_says_how_to_start_it():
    api = client()
    asked = 0
    for path, methods in every_path().items():
        for method in set(methods) if path not in PAGES else ():
            body = {"description": "x"} if method in ("POST", "PUT", "PATCH") else None
            answer = send(api, method, path, body)
            assert_problem(answer, 503, "Service Unavailable", "`gunicorn app:app`")
            asked += 1
    assert asked >= 12
    assert {"/healthz", "/readyz", "/metrics"} < every_path().keys() - PAGES


@pytest.mark.parametrize("path", sorted(PAGES))
def test_without_a_service_pages_and_the_document_are_there(path):
    assert send(client(), "GET", path).status_int == 200
