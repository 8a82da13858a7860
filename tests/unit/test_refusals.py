"""Requests that are refused, and what the answer says."""

import app
from calls import JSON, KIB, assert_problem, new_station, send
from refused import BEYOND, BODIES, URLS

TITLES = {400: "Malformed body", 413: "Content Too Large", 422: "Invalid value"}


def assert_refused(answer, status: int, word: str) -> None:
    assert_problem(answer, status, "No station" if "no station" in word else TITLES[status], word)
    assert answer.json.keys() == {"type", "title", "status", "detail"}


def assert_unchanged(api) -> None:
    assert api.get("/stations").json == {"items": [{"id": 1, "description": "Teste"}], "next": None}
    assert api.get("/transactions").json["items"] == []


def test_a_body_that_cannot_be_accepted_is_refused_by_name(api):
    new_station(api)
    for route, status, word, bodies in BODIES + BEYOND:
        for body in bodies:
            assert_refused(send(api, *route.split(), body), status, word)
    assert_unchanged(api)


def test_a_url_that_cannot_be_accepted_is_refused_by_name(api):
    new_station(api)
    for word, urls in URLS.items():
        for url in urls.split():
            assert_refused(send(api, "GET", url), 422, word)
            if word == "id":
                assert_refused(send(api, "DELETE" if "stations" in url else "GET", url), 422, word)
    assert_unchanged(api)


SPELLINGS = "1.0 01 +1 %2B1 1e0 1E0 %201 1%20 1%2e0 %30%31 1_0 0x1 1%0a"


def test_a_number_has_one_spelling(api):
    new_station(api)
    for text in SPELLINGS.split():
        for path in ("/stations/", "/stations?limit=", "/stations?after=", "/transactions?station_id="):
            assert_refused(send(api, "GET", path + text), 422, path.partition("?")[2].rstrip("=") or "id")
        assert send(api, "DELETE", f"/stations/{text}").status_int == 422
    assert_unchanged(api)


OTHER_TYPES = """text/plain application/x-www-form-urlencoded multipart/form-data;boundary=x text/json
    application/jsonx application/problem+json
    text/plain;application/json application/json,text/plain \xe9"""
WITH_BODY = "POST /stations", "PUT /stations/1", "PATCH /stations/1", "POST /transactions"


def test_a_body_that_is_not_declared_as_json_is_refused(api):
    new_station(api)
    for content_type in (None, "", *OTHER_TYPES.split()):
        for route in WITH_BODY:
            answer = send(api, *route.split(), {"description": "x"}, content_type)
            assert_problem(answer, 415, "Unsupported Media Type", "Content-Type", "application/json")
    assert_unchanged(api)


def test_a_body_that_is_declared_as_json_is_read_as_utf_8_up_to_64_kib(api):
    body = '{"description": "ação"}'.encode()
    for content_type in (JSON, "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        answer = send(api, "POST", "/stations", body + b" " * (64 * KIB - len(body)), content_type)
        assert (answer.status_int, answer.json["description"]) == (201, "ação")


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
