"""Requests that are refused, and what the answer says."""

import pytest

import app
from calls import JSON, KIB, assert_problem, new_station, send
from refused import REFUSED
from schemas import LARGEST_ID

TITLES = {400: "Malformed body", 413: "Content Too Large", 422: "Invalid value"}


@pytest.mark.parametrize(("method", "path", "body", "status", "name"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_accepted_is_refused_by_name(api, method, path, body, status, name):
    new_station(api)
    answer = send(api, method, path, body)
    assert_problem(
        answer, status, "No station" if body == {"station_id": LARGEST_ID} else TITLES[status], name
    )
    assert answer.json.keys() == {"type", "title", "status", "detail"}
    assert api.get("/stations").json == {"items": [{"id": 1, "description": "Teste"}], "next": None}
    assert api.get("/transactions").json["items"] == []


def test_a_number_has_one_spelling(api):
    new_station(api)
    for text in (
        "1.0",
        "01",
        "+1",
        "%2B1",
        "1e0",
        "1E0",
        "%201",
        "1%20",
        "1%2e0",
        "%30%31",
        "1_0",
        "0x1",
        "1%0a",
    ):
        for path in ("/stations/", "/stations?limit=", "/stations?after=", "/transactions?station_id="):
            name = path.partition("?")[2].rstrip("=") or "id"
            assert_problem(send(api, "GET", path + text), 422, TITLES[422], name)
        assert send(api, "DELETE", f"/stations/{text}").status_int == 422
    assert api.get("/stations/1").json["id"] == 1


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/problem+json",
        "text/json",
        "text/plain; application/json",
        "application/json, text/plain",
        "\xe9",
    ],
)
def test_a_body_that_is_not_declared_as_json_is_refused(api, content_type):
    new_station(api)
    for method, path in [("POST", "/stations"), ("PUT", "/stations/1"), ("PATCH", "/stations/1")]:
        answer = send(api, method, path, {"description": "x"}, content_type)
        assert_problem(answer, 415, "Unsupported Media Type", "Content-Type", "application/json")
    assert_problem(
        send(api, "POST", "/transactions", {"station_id": 1}, content_type), 415, "Unsupported Media Type"
    )
    assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]
    assert api.get("/transactions").json["items"] == []


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]
)
def test_a_body_that_is_declared_as_json_is_read_as_utf_8(api, content_type):
    answer = send(api, "POST", "/stations", '{"description": "ação"}'.encode(), content_type)
    assert (answer.status_int, answer.json["description"]) == (201, "ação")


def test_a_body_of_64_kib_is_read(api):
    body = b'{"description": "x"}'
    answer = send(api, "POST", "/stations", body + b" " * (64 * KIB - len(body)))
    assert (answer.status_int, answer.json["description"]) == (201, "x")


def test_what_fails_shows_no_internals(api, caplog):
    @app.app.get("/fails")
    def fails() -> None:
        """Fail."""
        {}["a secret"]

    try:
        answer = send(api, "GET", "/fails")
    finally:
        app.app.declarations.pop(app.app.routes.pop())
        del app.app.router.static["GET"]["/fails"]
    assert_problem(answer, 500, "Internal Server Error", "log")
    assert answer.json.keys() == {"type", "title", "status", "detail"}
    assert b"secret" not in answer.body
    assert "KeyError: 'a secret'" in caplog.text
    assert send(api, "GET", "/fails").status_int == 404
