"""Requests that are refused, and what the answer says."""

import re

import pytest

import app
from calls import JSON, KIB, assert_problem, new_station, send
from kit.storage import execute
from programs import ROOT
from refused import BEYOND, BODIES, LONG, URLS

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


ANSWERS = [  # in this order: status, method, path, body
    (200, "GET", "/", None),
    (200, "GET", "/swagger/", None),
    (200, "GET", "/openapi.json", None),
    (200, "HEAD", "/stations", None),
    (201, "POST", "/stations", {"description": "<script>alert(1)</script>"}),
    (400, "POST", "/stations", b"{"),
    (404, "GET", "/<script>alert(1)</script>", None),
    (404, "GET", "/%ff", None),
    (404, "GET", "/swagger/..%2fapp.py", None),
    (405, "TRACE", "/stations", None),
    (413, "POST", "/stations", LONG),
    (422, "POST", "/stations", {"description": 1}),
    (500, "GET", "/fails", None),
    (500, "GET", "/sql", None),
]
INTERNAL = f'Traceback|File "|{ROOT}|site-packages|SELECT|nowhere|a secret'


@pytest.fixture
def failing(api):
    """The app with two more routes, which fail."""

    @app.app.get("/fails")
    def fails() -> None:
        """Fail."""
        {}["a secret"]

    @app.app.get("/sql")
    async def sql(service: app.Service) -> None:
        """Ask for what the database does not have."""
        await service.read(execute, "SELECT secret FROM nowhere")

    yield api
    for path in ("/fails", "/sql"):
        app.app.declarations.pop(app.app.routes.pop())
        del app.app.router.static["GET"][path]


def test_every_answer_tells_browsers_to_run_nothing_foreign_and_shows_no_internals(failing, caplog):
    for status, method, path, body in ANSWERS:
        answer = send(failing, method, path, body)
        assert answer.status_int == status, (method, path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        policy = answer.headers["Content-Security-Policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        nothing = "default-src", "base-uri", "form-action", "frame-ancestors"
        assert {rules[name] for name in nothing} == {"'none'"}
        assert {rules[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert "unsafe" not in policy
        # What clients wrote comes back as JSON, never as HTML.
        assert "html" not in answer.headers["Content-Type"] or path in ("/", "/swagger/")
        if status >= 400:
            assert_problem(answer, status, answer.json["title"])
            assert answer.json.keys() == {"type", "title", "status", "detail"}
            assert not re.search(INTERNAL, answer.text)
    assert "KeyError: 'a secret'" in caplog.text
    assert "SELECT secret" in caplog.text
