"""Requests that are refused, and what the answer says."""

import re

from calls import JSON, KIB, UNKNOWN, assert_problem, new_station, send
from kit.storage import execute
from programs import ROOT
from schemas import LARGEST_ID

TITLES = {400: "Malformed body", 413: "Content Too Large", 422: "Invalid value"}

DEEP = b"[" * (60 * KIB)
LONG = b" " * (64 * KIB + 1)


def descriptions(*values) -> list[dict]:
    return [{"description": value} for value in values]


def stations(*values) -> list[dict]:
    return [{"station_id": value} for value in values]


NOT_JSON = [b"", b"{'description': 'x'}", b'{"description": "x"} y', '{"description": "x"}'.encode("utf-16")]
NOT_JSON += [b'{"description": "\xff"}', b'{"description": "\n"}', b'{"description": "\\ud800"}']
NO_NUMBER = [b'{"station_id": %s}' % number for number in (b"1e0", b"1e999", b"1" * 5000)]
NO_JSON_NUMBER = [b'{"station_id": %s}' % text for text in (b"01", b"NaN")]
TEXT = "1 to 255 characters, at least one of them visible"
TIME = "must be a time with its zone, such as 2026-03-28T00:18:13Z (in a URL, write + as %2B)"
BLANKS = "\u00a0\u2003\u3000\ufeff|\u200b|\u200d\ufe0f|\u00ad\u2060|\u2800|\u3164|\ufff9\ufffb"
CONTROLS = "", "\t \n", "a\0", "\nx", "x\n", "a\x7f", "a\u0085b", "a\u2028", "\u202eb", "a\u2066b\u2069"
BODIES = [
    # route, status, a word of the detail, bodies: bytes, or values that become JSON
    ("POST /stations", 400, "body", NOT_JSON),
    ("PUT /stations/1", 400, "body", [b'{"description": "\\udbff\\udbff"}']),
    ("PATCH /stations/1", 400, "body", [b'{"\\ud800": "x"}']),
    ("POST /transactions", 400, "body", NO_JSON_NUMBER),
    ("POST /stations", 422, "body", [[], [{"description": "x"}], "description", 1, b"null", DEEP]),
    ("POST /stations", 422, "body.description: is missing", [{}]),
    ("POST /stations", 422, "body.x: is not one of description", [{"x": 1}, b'{"x": ' + DEEP]),
    ("POST /stations", 422, "body.description", descriptions(None, 1, "", " ", "a" * 256, "a\0b")),
    ("PUT /stations/1", 422, TEXT, descriptions(*CONTROLS)),
    ("PATCH /stations/1", 422, "body.description", descriptions(None, "", *BLANKS.split("|"), "🔋" * 256)),
    ("POST /stations", 422, "body.colour", [{"description": "x", "colour": "red"}]),
    ("PATCH /stations/1", 422, "body.colour", [{"colour": "red"}]),
    ("POST /transactions", 422, "station_id", [{}]),
    ("POST /transactions", 422, "body.station_id", stations(None, "1", True, [1], 0, -1, 1.5, 2**31, 2**64)),
    ("POST /transactions", 422, "from 1 to 2147483647", stations(0, -1)),
    ("POST /transactions", 422, "body.status", [{"station_id": 1, "status": "COMPLETED"}]),
    ("PUT /stations/x", 422, "id", [b"{"]),  # the path matters before the body
    ("POST /stations", 413, "65536", [LONG]),
    ("PUT /stations/1", 413, "65536", [LONG]),
    ("POST /transactions", 422, "body.station_id", [*stations(1.0), *NO_NUMBER]),
    ("POST /transactions", 422, "no station 2147483647", stations(LARGEST_ID)),
]
# The place that the detail names, and URLs.
LATEST = "must be 1 to 200 ids of stations with commas, each from 1 to 2147483647"
URLS = {
    "id": f"""/stations/x /stations/0 /stations/1.5 /stations/1%00 /stations/%D9%A1 /stations/2147483648
        /stations/{"1" * 5000} /transactions/1 /transactions/{UNKNOWN[:18]} /transactions/%7B{UNKNOWN}%7D""",
    "query.q": f"/stations?q=%ed%a0%80 /stations?q= /stations?q={'x' * 256}",
    "query.q: must be UTF-8": "/stations?q=%ff",
    "query.": "/stations?%ed%a0%80=1",
    "query.colour: is not one of q, limit, after": "/stations?colour=red",
    "query.q: is not one of status, station_id, idempotency_key, created_from": "/transactions?q=x",
    "query.limit": "/stations?limit=x /transactions?limit=201 /stations?limit=1&%6cimit=1",
    "query.limit: Expected `int` from 1 to 200": "/stations?limit=0",
    "query.status": "/stations?status=PENDING /transactions?status=pending /transactions?status=",
    "query.status: 'DONE' is not one of PENDING, COMPLETED": "/transactions?status=PENDING,DONE",
    "query.status: ''": "/transactions?status=ERROR,",
    f"query.created_from: {TIME}": "/transactions?created_from=2026-03-28T00:18:13",
    "query.created_to: must be a time": """/transactions?created_to=2026-03-28
        /transactions?created_to=2026-03-28T00:18:13+01:00 /transactions?created_to=2026-02-30T00:00:00Z""",
    "query.station_id": "/transactions?station_id=x /transactions?station_id=2147483648",
    f"query.station_id: {LATEST}": f"""/transactions/latest?station_id=0
        /transactions/latest?station_id=1,1.0 /transactions/latest?station_id={",".join("1" * 201)}""",
    "query.station_id: Expected `int`, got `str`": "/transactions/latest?station_id=1,,2",
    "query.station_id: is missing": "/transactions/latest",
    "query.to: must be later than query.from, by 31 days at most.": """
        /transactions/counts?from=2026-03-28T00:00:00Z&to=2026-03-28T00:00:00Z
        /transactions/counts?from=2026-03-28T00:00:00Z&to=2026-04-28T00:00:00.001Z
        /transactions/counts?from=2026-03-28T00:00:00Z /transactions/counts?to=0001-01-01T00:00:00Z
        /transactions/counts?from=9999-12-31T23:59:59.999999Z""",
    "query.step: Expected `int` from 1 to 2678400": "/transactions/counts?step=0",
    "query.step: must be at least 3, for 200 steps at most.": "/transactions/counts?step=2",
    f"query.from: {TIME}": "/transactions/counts?from=2026",
    "query.after": f"/transactions?after=1 /stations?after={UNKNOWN} /stations?after=0",
}


def assert_refused(answer, status: int, word: str) -> None:
    assert_problem(answer, status, "No station" if "no station" in word else TITLES[status], word)
    assert answer.json.keys() == {"type", "title", "status", "detail"}


def assert_unchanged(api) -> None:
    assert api.get("/stations").json == {"items": [{"id": 1, "description": "Teste"}], "next": None}
    assert api.get("/transactions").json["items"] == []


def test_a_body_that_cannot_be_accepted_is_refused_by_name(api):
    new_station(api)
    for route, status, word, bodies in BODIES:
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
    (500, "GET", "/stations/1", None),
    (500, "GET", "/transactions", None),
]
INTERNAL = f'Traceback|File "|{ROOT}|site-packages|SELECT|nowhere|a secret'


def test_every_answer_tells_browsers_to_run_nothing_foreign_and_shows_no_internals(api, caplog, monkeypatch):
    monkeypatch.setattr("models.get_station", lambda *_: {}["a secret"])
    wrong = lambda database, **_: execute(database, "SELECT secret FROM nowhere")  # noqa: E731
    monkeypatch.setattr("models.list_transactions", wrong)
    for status, method, path, body in ANSWERS:
        answer = send(api, method, path, body)
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
