"""HTTP in, HTTP back, over the app with a real SQLite file and a running ledger."""

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from webtest import TestApp, TestRequest

import app
import storage
from mqtt_listener import VERDICTS
from programs import wait_until
from settings import VERSION, Settings

UNKNOWN = "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"  # no transaction has this id
JSON = "application/json"
KIB = 1024


@contextmanager
def serving(folder, ready=True, **options):
    """The started app, as a TestApp; `options` are settings. The broker accepts its connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        defaults = {"database_url": f"sqlite:///{folder}/energy2go.db", "mqtt_port": silent.getsockname()[1]}
        app.start(Settings(**defaults | options))
        api = TestApp(app.app)
        try:
            if ready:
                wait_until(lambda: send(api, "GET", "/healthz").status_int == 200, "the tables are there")
            yield api
        finally:
            app.stop()
            app.app.config["api_token"] = ""


@pytest.fixture
def api(tmp_path, database_url):
    with serving(tmp_path, database_url=database_url) as api:
        yield api


@pytest.fixture
def guarded(tmp_path):
    """The same, which asks for a token."""
    with serving(tmp_path, api_token="open sesame") as api:
        yield api


def send(api, method, path, body=None, content_type=JSON, **headers):
    """Any request, with whatever answer; `body` is bytes as they are, or what becomes JSON."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = TestRequest.blank(path, method=method, headers=headers)
    if body is not None:
        request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if content_type is not None:
            request.environ["CONTENT_TYPE"] = content_type
    return api.do_request(request, expect_errors=True)


def new_station(api, description="Teste") -> int:
    return api.post_json("/stations", {"description": description}, status=201).json["id"]


def new_transaction(api, station_id=1, **headers) -> dict:
    return send(api, "POST", "/transactions", {"station_id": station_id}, **headers).json


def settle(key: str, status="COMPLETED") -> None:
    """Hand over what the equipment would answer, and wait until it was dealt with."""
    done = threading.Event()
    app.listener.receive(VERDICTS, json.dumps({"transaction_id": key, "status": status}).encode(), False, done.set)
    assert done.wait(10)


def at_once(number: int, call) -> list:
    """What `call` returns, called by so many threads at one moment."""
    barrier = threading.Barrier(number)

    def run(_):
        barrier.wait()
        try:
            return call()
        finally:
            storage.close()  # each thread has a connection of its own

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


def walk(api, url: str) -> list[list]:
    """The items of this page and of all that follow it, page by page."""
    pages = []
    while url and len(pages) < 100:
        answer = api.get(url).json
        assert answer.keys() == {"items", "next"}
        pages.append(answer["items"])
        url = answer["next"]
    return pages


def assert_problem(answer, status: int, title: str, *words: str) -> None:
    """This is an error as RFC 9457 shapes it, and its detail has these words."""
    assert (answer.status_int, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.body
    assert {"type": "about:blank", "title": title, "status": status}.items() <= answer.json.items()
    for word in words:
        assert word in answer.json["detail"]


# Stations


def test_a_station_reads_as_it_was_created(api):
    answer = api.post_json("/stations", {"description": "Teste"}, status=201)
    assert answer.json == {"id": 1, "description": "Teste"}
    assert answer.headers["Location"] == "/stations/1"
    assert answer.headers["Content-Type"] == JSON
    assert api.get("/stations/1").json == answer.json


def test_stations_are_listed_newest_last(api):
    assert api.get("/stations").json == {"items": [], "next": None}
    for description in "abc":
        new_station(api, description)
    listed = api.get("/stations").json["items"]
    assert listed == [{"id": 1, "description": "a"}, {"id": 2, "description": "b"}, {"id": 3, "description": "c"}]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_description_can_be_changed(api, method):
    new_station(api)
    other = new_station(api, "other")
    answer = send(api, method, "/stations/1", {"description": "changed"})
    assert (answer.status_int, answer.json) == (200, {"id": 1, "description": "changed"})
    assert api.get("/stations/1").json == answer.json
    assert api.get(f"/stations/{other}").json["description"] == "other"


def test_an_empty_patch_changes_nothing(api):
    new_station(api)
    answer = send(api, "PATCH", "/stations/1", {})
    assert (answer.status_int, answer.json) == (200, {"id": 1, "description": "Teste"})


def test_a_deleted_station_is_gone(api):
    new_station(api)
    answer = send(api, "DELETE", "/stations/1")
    assert (answer.status_int, answer.body) == (204, b"")
    assert api.get("/stations").json["items"] == []
    new = {"description": "x"}
    for method, body in [("GET", None), ("DELETE", None), ("PATCH", {}), ("PATCH", new), ("PUT", new)]:
        assert_problem(send(api, method, "/stations/1", body), 404, "Not Found", "There is no station 1.")


def test_a_deleted_id_is_never_given_again(api):
    for _ in range(3):
        newest = new_station(api)
    api.delete(f"/stations/{newest}")
    assert new_station(api) == newest + 1
    for station in api.get("/stations").json["items"]:
        api.delete(f"/stations/{station['id']}")
    assert new_station(api) == newest + 2


def test_a_station_that_has_transactions_stays(api):
    new_station(api)
    key = new_transaction(api)["id"]
    for status in ("PENDING", "COMPLETED"):
        assert api.get(f"/transactions/{key}").json["status"] == status
        assert_problem(send(api, "DELETE", "/stations/1"), 409, "Conflict", "Station 1 has transactions")
        assert api.get("/stations/1").json["description"] == "Teste"
        settle(key)


@pytest.mark.parametrize(
    "text",
    [
        "Estação São João",
        "電池 🔋 محطة",
        "<script>alert(1)</script> & <b>'\"</b>",
        " \t\r\n ",
        "\\ / \u2028 \x7f \x01",
        "%00 ?a=b #c",
        "null",
        "a" * 255,
        "🔋" * 255,
    ],
)
def test_a_text_comes_back_as_it_went_in(api, text):
    answer = api.post_json("/stations", {"description": text}, status=201)
    assert answer.json["description"] == text
    assert send(api, "PUT", "/stations/1", {"description": text}).json["description"] == text
    assert api.get("/stations").json["items"] == [{"id": 1, "description": text}]
    assert new_transaction(api)["station"]["description"] == text


# Transactions


def test_a_transaction_reads_as_it_was_created(api):
    new_station(api, "outra")
    new_station(api)
    answer = api.post_json("/transactions", {"station_id": 2}, status=201)
    transaction = answer.json
    assert transaction.keys() == {"id", "station", "status", "created", "updated"}
    assert UUID(transaction["id"]).version == 7
    assert transaction["station"] == {"id": 2, "description": "Teste"}
    assert transaction["status"] == "PENDING"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", transaction["created"])
    assert transaction["updated"] == transaction["created"]
    assert answer.headers["Location"] == f"/transactions/{transaction['id']}"
    assert "Preference-Applied" not in answer.headers
    assert api.get(answer.headers["Location"]).json == transaction
    assert api.get("/transactions").json == {"items": [transaction], "next": None}


@pytest.mark.parametrize("verdict", ["COMPLETED", "ERROR"])
def test_a_transaction_reads_as_the_equipment_said(api, verdict):
    new_station(api)
    created = new_transaction(api)
    settle(created["id"], verdict)
    settled = api.get(f"/transactions/{created['id']}").json
    assert settled == created | {"status": verdict, "updated": settled["updated"]}
    assert settled["updated"] >= settled["created"]
    assert settled["updated"].endswith("Z")


def test_a_transaction_shows_its_station_as_it_is_now(api):
    new_station(api)
    transaction = new_transaction(api)
    send(api, "PUT", "/stations/1", {"description": "changed"})
    assert api.get(f"/transactions/{transaction['id']}").json["station"]["description"] == "changed"


def test_a_transaction_wants_a_station_that_exists(api):
    answer = send(api, "POST", "/transactions", {"station_id": 7})
    assert_problem(answer, 422, "Unprocessable Content", "body.station_id", "no station 7")
    assert api.get("/transactions").json["items"] == []


def test_a_transaction_that_does_not_exist_is_not_found(api):
    assert_problem(send(api, "GET", f"/transactions/{UNKNOWN}"), 404, "Not Found", UNKNOWN)
    assert_problem(send(api, "GET", f"/transactions/{uuid4()}", Prefer="wait=30"), 404, "Not Found")


def test_an_id_may_be_written_in_capitals(api):
    new_station(api)
    transaction = new_transaction(api)
    assert api.get(f"/transactions/{transaction['id'].upper()}").json == transaction


# Pages


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 6), (2, [2] * 3), (4, [4, 2]), (5, [5, 1]), (6, [6]), (7, [6])])
def test_pages_hold_everything_once(api, limit, sizes):
    stations = [new_station(api) for _ in range(6)]
    pages = walk(api, f"/stations?limit={limit}")
    assert [len(page) for page in pages] == sizes
    assert [item["id"] for page in pages for item in page] == stations

    transactions = [new_transaction(api) for _ in range(6)]
    pages = walk(api, f"/transactions?limit={limit}")
    assert [len(page) for page in pages] == sizes
    assert [item for page in pages for item in page] == transactions[::-1]


def test_pages_keep_their_filters(api):
    expected = []
    for number in range(24):
        station_id = new_station(api) if number < 2 else number % 2 + 1
        key = new_transaction(api, station_id)["id"]
        if number % 3:
            settle(key, "COMPLETED" if number % 3 == 1 else "ERROR")
        if (station_id, number % 3) == (2, 1):
            expected.insert(0, key)
    url, found = "/transactions?status=COMPLETED&station_id=2&limit=1", []
    while url:
        query = parse_qs(urlsplit(url).query)
        assert query.items() >= {"status": ["COMPLETED"], "station_id": ["2"], "limit": ["1"]}.items()
        assert urlsplit(url).path == "/transactions"
        answer = api.get(url).json
        found += answer["items"]
        url = answer["next"]
    assert [item["id"] for item in found] == expected
    assert {(item["status"], item["station"]["id"]) for item in found} == {("COMPLETED", 2)}


def test_each_filter_works_alone(api):
    for description in "ab":
        new_station(api, description)
    ours, theirs = new_transaction(api, 1)["id"], new_transaction(api, 2)["id"]
    settle(theirs, "ERROR")

    def listed(query):
        return [item["id"] for item in api.get(f"/transactions?{query}").json["items"]]

    assert listed("station_id=1") == listed("status=PENDING") == listed(f"after={theirs}") == [ours]
    assert listed("station_id=2") == listed("status=ERROR") == [theirs]
    assert listed("station_id=3") == listed("status=EXPIRED") == listed("status=ERROR&station_id=1") == []


def test_what_is_new_disturbs_no_page(api):
    stations = [new_station(api) for _ in range(4)]
    transactions = [new_transaction(api)["id"] for _ in range(4)]
    first = api.get("/transactions?limit=2").json
    new_transaction(api)
    rest = walk(api, first["next"])
    assert [item["id"] for page in [first["items"], *rest] for item in page] == transactions[::-1]

    first = api.get("/stations?limit=2").json
    api.delete("/stations/2")
    stations.append(new_station(api))
    rest = walk(api, first["next"])
    assert [item["id"] for page in [first["items"], *rest] for item in page] == stations


def test_a_page_holds_50_unless_told(api):
    for number in range(51):
        new_station(api, str(number))
    assert [len(page) for page in walk(api, "/stations")] == [50, 1]
    assert len(api.get("/stations?limit=200").json["items"]) == 51
    at_once(51, lambda: new_transaction(api))
    assert [len(page) for page in walk(api, "/transactions")] == [50, 1]


# Idempotency-Key


def test_the_same_key_and_body_get_the_first_answer_again(api):
    new_station(api)
    first = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k")
    settle(first.json["id"])
    again = send(api, "POST", "/transactions", b' { "station_id" : 1 } ', Idempotency_Key="k")
    assert (again.status_int, again.json) == (first.status_int, first.json) == (201, first.json)
    assert again.headers["Location"] == first.headers["Location"]
    assert len(api.get("/transactions").json["items"]) == 1


def test_the_same_key_with_another_body_is_refused(api):
    for description in "ab":
        new_station(api, description)
    new_transaction(api, 1, Idempotency_Key="k")
    answer = send(api, "POST", "/transactions", {"station_id": 2}, Idempotency_Key="k")
    assert_problem(answer, 422, "Unprocessable Content", "Idempotency-Key")
    assert len(api.get("/transactions").json["items"]) == 1


def test_another_key_or_none_is_another_transaction(api):
    new_station(api)
    keys = [{"Idempotency_Key": key} for key in ("k", "K", "k k", "null", "1", "é")]
    assert len({new_transaction(api, **headers)["id"] for headers in [*keys, {}, {}]}) == 8
    assert len(api.get("/transactions").json["items"]) == 8


@pytest.mark.parametrize("key", ["null", "a" * 255, "\xe9", "\xc3\xa9", "'; DROP TABLE station; --"])
def test_any_key_of_1_to_255_characters_works(api, key):
    new_station(api)
    assert new_transaction(api, Idempotency_Key=key) == new_transaction(api, Idempotency_Key=key)
    assert len(api.get("/transactions").json["items"]) == 1


@pytest.mark.parametrize("key", ["", "a" * 256])
def test_a_key_of_another_length_is_refused(api, key):
    new_station(api)
    answer = send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key)
    assert_problem(answer, 422, "Unprocessable Content", "headers.Idempotency-Key", "length")
    assert api.get("/transactions").json["items"] == []


def test_a_refused_transaction_does_not_use_up_its_key(api):
    assert send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k").status_int == 422
    new_station(api)
    assert send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key="k").status_int == 201


def test_sixteen_requests_with_one_key_create_one_row(api):
    new_station(api)
    for number in range(5):
        answers = at_once(
            16, lambda key=f"race {number}": send(api, "POST", "/transactions", {"station_id": 1}, Idempotency_Key=key)
        )
        assert {answer.status_int for answer in answers} == {201}
        assert len({answer.body for answer in answers}) == 1
    assert len(api.get("/transactions").json["items"]) == 5


def test_of_sixteen_requests_with_one_key_and_two_bodies_one_body_wins(api):
    bodies = [{"station_id": new_station(api, description)} for description in "ab"] * 8
    answers = at_once(16, lambda: send(api, "POST", "/transactions", bodies.pop(), Idempotency_Key="k"))
    assert sorted(answer.status_int for answer in answers) == [201] * 8 + [422] * 8
    assert len(api.get("/transactions").json["items"]) == 1


def test_sixteen_requests_without_a_key_create_sixteen_rows(api):
    new_station(api)
    answers = at_once(16, lambda: new_transaction(api))
    listed = api.get("/transactions").json["items"]
    assert listed == sorted(answers, key=lambda transaction: transaction["id"], reverse=True)


# Prefer: wait


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=5", "wait=5"),
        ("wait=0", "wait=0"),
        ("respond-async, wait=1", "wait=1"),
        ("wait=2, respond-async", "wait=2"),
        ("handling=lenient; wait=3", "wait=3"),
        ("Wait = 4", "wait=4"),
        ('wait="6"', "wait=6"),
        ("wait=30", "wait=30"),
        ("wait=31", "wait=30"),
        ("wait=99999999999999999999", "wait=30"),
    ],
)
def test_a_preference_that_is_honoured_is_named(api, prefer, applied):
    new_station(api)
    key = new_transaction(api)["id"]
    settle(key)  # so that nothing is left to wait for
    answer = send(api, "GET", f"/transactions/{key}", Prefer=prefer)
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("COMPLETED", applied)


@pytest.mark.parametrize(
    "prefer",
    [
        "",
        "wait",
        "wait=",
        "wait=x",
        "wait=-1",
        "wait=30x",
        "wait=3.5",
        'wait="30',
        "await=30",
        "wait 30",
        "\xe9",
        "respond-async",
        "wait=" + "9" * 8000,
        "wait=" + "9" * 8000 + "x",
        "," * 8000,
    ],
)
def test_a_preference_that_cannot_be_read_is_ignored(api, prefer):
    new_station(api)
    answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer=prefer)
    assert (answer.status_int, answer.json["status"]) == (201, "PENDING")
    assert "Preference-Applied" not in answer.headers
    assert "Preference-Applied" not in send(api, "GET", answer.headers["Location"], Prefer=prefer).headers


def test_an_answer_is_held_no_longer_than_was_asked(api):
    new_station(api)
    for seconds in (0, 1):
        answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer=f"wait={seconds}")
        assert (answer.status_int, answer.json["status"]) == (201, "PENDING")
        assert answer.headers["Preference-Applied"] == f"wait={seconds}"
        assert answer.headers["Location"] == f"/transactions/{answer.json['id']}"


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
        answers = held.result(20)
    for answer in answers:
        assert (answer.status_int, answer.json["status"]) == (201, "ERROR")
        assert answer.headers["Preference-Applied"] == "wait=30"
        assert answer.json == api.get(answer.headers["Location"]).json


def test_half_the_threads_wait_and_the_rest_answer_at_once(api):
    new_station(api)
    key = new_transaction(api)["id"]
    path = f"/transactions/{key}"

    def honoured(seconds):
        answer = send(api, "GET", path, Prefer=f"wait={seconds}")
        return answer if "Preference-Applied" in answer.headers else None

    def full():
        return not honoured(0)  # which takes a place itself for a moment, and may turn another away

    with ThreadPoolExecutor() as pool:
        held = pool.submit(at_once, 8, lambda: wait_until(lambda: honoured(30), "a place is free"))
        wait_until(full, "eight of sixteen wait")
        answer = send(api, "POST", "/transactions", {"station_id": 1}, Prefer="wait=30")
        assert (answer.status_int, answer.json["status"]) == (201, "PENDING")
        assert "Preference-Applied" not in answer.headers
        assert not held.done()
        settle(key)
        answers = held.result(20)
    assert [answer.json["status"] for answer in answers] == ["COMPLETED"] * 8
    assert {answer.headers["Preference-Applied"] for answer in answers} == {"wait=30"}
    assert not full()


# Every route


def every_path() -> dict[str, list[str]]:
    """Each path of the app, for station 1 and no transaction, with its methods."""
    paths = {}
    for route in app.app.routes:
        path = route.rule.replace("<name>", "index.html")
        path = path.replace("<id>", UNKNOWN if "transactions" in path else "1")
        paths.setdefault(path, []).append(route.method)
    return paths


def test_a_trailing_slash_changes_nothing(api):
    bodies = {
        "/stations": {"description": "x"},
        "/stations/1": {"description": "y"},
        "/transactions": {"station_id": 1},
    }
    new_station(api)
    for path, methods in every_path().items():
        for method in sorted(set(methods) - {"DELETE"}):
            body = bodies.get(path) if method != "GET" else None
            plain, slashed = send(api, method, path, body), send(api, method, path + "/", body)
            assert plain.status_int == slashed.status_int
            assert slashed.status_int in (200, 201, 503) or UNKNOWN in path, (method, path)
            if method == "GET" and path != "/metrics":  # whose numbers go on
                assert plain.body == slashed.body
    unused = new_station(api)
    assert send(api, "DELETE", f"/stations/{unused}/").status_int == 204


def test_head_is_get_without_the_body(api):
    new_station(api)
    for path, methods in every_path().items():
        if "GET" in methods:
            get, head = send(api, "GET", path), send(api, "HEAD", path)
            assert head.body == b""
            assert (head.status_int, head.headers["Content-Type"]) == (get.status_int, get.headers["Content-Type"])
            if path != "/metrics":  # whose numbers go on
                assert head.headers["Content-Length"] == get.headers["Content-Length"]


def test_a_method_that_a_path_does_not_have_is_refused(api):
    new_station(api)
    for path, methods in every_path().items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(methods):
            answer = send(api, method, path, {"description": "changed"})
            assert_problem(answer, 405, "Method Not Allowed")
            assert set(answer.headers["Allow"].split(",")) == set(methods)
    assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]


ELSEWHERE = "/nope /nope/ /stations/1/x //stations /Stations /stations.json /app.py /.env /static/swagger/start.js"
NOT_UTF_8 = "/stations/1%ff /stations/%ff /%ff /swagger/%ff"  # Bottle would leave these bytes out


@pytest.mark.parametrize("path", [*ELSEWHERE.split(), *NOT_UTF_8.split()])
def test_what_is_not_there_is_not_found(api, path):
    new_station(api)
    assert_problem(send(api, "GET", path), 404, "Not Found")
    assert_problem(send(api, "DELETE", path), 404, "Not Found")
    assert api.get("/stations/1").status_int == 200


# What is refused, and how it is said

DEEP = b"[" * (60 * KIB)
REFUSED = {
    # Not JSON
    "an empty body": ("POST", "/stations", b"", 400, "body"),
    "broken JSON": ("POST", "/stations", b'{"description": "x"', 400, "body"),
    "single quotes": ("POST", "/stations", b"{'description': 'x'}", 400, "body"),
    "something behind it": ("POST", "/stations", b'{"description": "x"} y', 400, "body"),
    "a comma too many": ("POST", "/stations", b'{"description": "x",}', 400, "body"),
    "a form": ("POST", "/stations", b"description=x", 400, "body"),
    "a byte order mark": ("POST", "/stations", b'\xef\xbb\xbf{"description": "x"}', 400, "body"),
    "UTF-16": ("POST", "/stations", '{"description": "x"}'.encode("utf-16"), 400, "body"),
    "bytes that are not UTF-8": ("POST", "/stations", b'{"description": "\xff"}', 400, "body"),
    "a surrogate in bytes": ("POST", "/stations", b'{"description": "\xed\xa0\x80"}', 400, "body"),
    "a lone surrogate": ("POST", "/stations", b'{"description": "\\ud800"}', 400, "body"),
    "a lone low surrogate": ("POST", "/stations", b'{"description": "\\udc00x"}', 400, "body"),
    "a control character": ("POST", "/stations", b'{"description": "\n"}', 400, "body"),
    "a leading zero": ("POST", "/transactions", b'{"station_id": 01}', 400, "body"),
    "not a number": ("POST", "/transactions", b'{"station_id": NaN}', 400, "body"),
    "infinity": ("POST", "/transactions", b'{"station_id": Infinity}', 400, "body"),
    # Not an object
    "a list": ("POST", "/stations", [], 422, "body"),
    "a list of one": ("POST", "/stations", [{"description": "x"}], 422, "body"),
    "a string": ("POST", "/stations", "description", 422, "body"),
    "a number": ("POST", "/stations", 1, 422, "body"),
    "null": ("POST", "/stations", b"null", 422, "body"),
    "true": ("POST", "/transactions", True, 422, "body"),
    "deep nesting": ("POST", "/stations", DEEP, 422, "body"),
    "deep nesting in a field": ("POST", "/stations", b'{"description": ' + DEEP, 422, "body.description"),
    "deep nesting in an unknown field": ("POST", "/stations", b'{"x": ' + DEEP, 422, "x"),
    # A description
    "no description": ("POST", "/stations", {}, 422, "description"),
    "no description in PUT": ("PUT", "/stations/1", {}, 422, "description"),
    "a null description": ("POST", "/stations", {"description": None}, 422, "body.description"),
    "a null description in PATCH": ("PATCH", "/stations/1", {"description": None}, 422, "body.description"),
    "a number for a description": ("POST", "/stations", {"description": 1}, 422, "body.description"),
    "a list for a description": ("PUT", "/stations/1", {"description": ["x"]}, 422, "body.description"),
    "an empty description": ("POST", "/stations", {"description": ""}, 422, "body.description"),
    "an empty description in PUT": ("PUT", "/stations/1", {"description": ""}, 422, "body.description"),
    "an empty description in PATCH": ("PATCH", "/stations/1", {"description": ""}, 422, "body.description"),
    "256 characters": ("POST", "/stations", {"description": "a" * 256}, 422, "body.description"),
    "256 emoji": ("PATCH", "/stations/1", {"description": "🔋" * 256}, 422, "body.description"),
    "a NUL": ("POST", "/stations", {"description": "a\0b"}, 422, "body.description"),
    "a NUL at the end": ("PUT", "/stations/1", {"description": "a\n\0"}, 422, "body.description"),
    "an unknown field": ("POST", "/stations", {"description": "x", "colour": "red"}, 422, "colour"),
    "an id for a new station": ("POST", "/stations", {"description": "x", "id": 5}, 422, "id"),
    "another case": ("POST", "/stations", {"Description": "x"}, 422, "Description"),
    "an unknown field in PATCH": ("PATCH", "/stations/1", {"colour": "red"}, 422, "colour"),
    # A station's id in a body
    "no station": ("POST", "/transactions", {}, 422, "station_id"),
    "null for a station": ("POST", "/transactions", {"station_id": None}, 422, "body.station_id"),
    "a string for a station": ("POST", "/transactions", {"station_id": "1"}, 422, "body.station_id"),
    "true for a station": ("POST", "/transactions", {"station_id": True}, 422, "body.station_id"),
    "a list for a station": ("POST", "/transactions", {"station_id": [1]}, 422, "body.station_id"),
    "station 0": ("POST", "/transactions", {"station_id": 0}, 422, "body.station_id"),
    "station -1": ("POST", "/transactions", {"station_id": -1}, 422, "body.station_id"),
    "station 1.5": ("POST", "/transactions", {"station_id": 1.5}, 422, "body.station_id"),
    "station 1.0": ("POST", "/transactions", {"station_id": 1.0}, 422, "body.station_id"),
    "station 1e0": ("POST", "/transactions", b'{"station_id": 1e0}', 422, "body.station_id"),
    "station 1e999": ("POST", "/transactions", b'{"station_id": 1e999}', 422, "body.station_id"),
    "a station that does not exist": ("POST", "/transactions", {"station_id": 2**31 - 1}, 422, "body.station_id"),
    "a station beyond 32 bits": ("POST", "/transactions", {"station_id": 2**31}, 422, "body.station_id"),
    "a station beyond 64 bits": ("POST", "/transactions", {"station_id": 2**64}, 422, "body.station_id"),
    "a station of 5,000 digits": ("POST", "/transactions", b'{"station_id": %s}' % (b"1" * 5000), 422, "station_id"),
    "an unknown field beside it": ("POST", "/transactions", {"station_id": 1, "status": "COMPLETED"}, 422, "status"),
    # An id in a path
    "a word in a path": ("GET", "/stations/x", None, 422, "id"),
    "0 in a path": ("GET", "/stations/0", None, 422, "id"),
    "-1 in a path": ("DELETE", "/stations/-1", None, 422, "id"),
    "1.5 in a path": ("GET", "/stations/1.5", None, 422, "id"),
    "true in a path": ("GET", "/stations/true", None, 422, "id"),
    "null in a path": ("GET", "/stations/null", None, 422, "id"),
    "a blank in a path": ("DELETE", "/stations/1%20", None, 422, "id"),
    "a NUL in a path": ("DELETE", "/stations/1%00", None, 422, "id"),
    "another digit in a path": ("DELETE", "/stations/%D9%A1", None, 422, "id"),
    "beyond 32 bits in a path": ("GET", "/stations/2147483648", None, 422, "id"),
    "5,000 digits in a path": ("GET", "/stations/" + "1" * 5000, None, 422, "id"),
    "a path that matters before its body": ("PUT", "/stations/x", b"{", 422, "id"),
    "a number for a transaction": ("GET", "/transactions/1", None, 422, "id"),
    "a word for a transaction": ("GET", "/transactions/x", None, 422, "id"),
    "half an id for a transaction": ("GET", f"/transactions/{UNKNOWN[:18]}", None, 422, "id"),
    "braces about a transaction": ("GET", f"/transactions/%7B{UNKNOWN}%7D", None, 422, "id"),
    # A query
    "limit 0": ("GET", "/stations?limit=0", None, 422, "query.limit"),
    "limit x": ("GET", "/stations?limit=x", None, 422, "query.limit"),
    "limit 201": ("GET", "/transactions?limit=201", None, 422, "query.limit"),
    "limit -1": ("GET", "/transactions?limit=-1", None, 422, "query.limit"),
    "no limit": ("GET", "/transactions?limit=", None, 422, "query.limit"),
    "limit null": ("GET", "/transactions?limit=null", None, 422, "query.limit"),
    "a limit that is not UTF-8": ("GET", "/transactions?limit=%ff", None, 422, "query.limit"),
    "an unknown parameter": ("GET", "/stations?colour=red", None, 422, "colour"),
    "a parameter of another list": ("GET", "/stations?status=PENDING", None, 422, "status"),
    "an unknown status": ("GET", "/transactions?status=DONE", None, 422, "query.status"),
    "a status in small letters": ("GET", "/transactions?status=pending", None, 422, "query.status"),
    "status null": ("GET", "/transactions?status=null", None, 422, "query.status"),
    "no status": ("GET", "/transactions?status=", None, 422, "query.status"),
    "station x": ("GET", "/transactions?station_id=x", None, 422, "query.station_id"),
    "station null": ("GET", "/transactions?station_id=null", None, 422, "query.station_id"),
    "station beyond 32 bits": ("GET", "/transactions?station_id=2147483648", None, 422, "query.station_id"),
    "after a station": ("GET", "/transactions?after=1", None, 422, "query.after"),
    "after null": ("GET", "/transactions?after=null", None, 422, "query.after"),
    "after a transaction": ("GET", f"/stations?after={UNKNOWN}", None, 422, "query.after"),
    "after station 0": ("GET", "/stations?after=0", None, 422, "query.after"),
    # Too long
    "a byte beyond 64 KiB": ("POST", "/stations", b" " * (64 * KIB + 1), 413, "65536"),
    "a megabyte": ("POST", "/transactions", b" " * 1024 * KIB, 413, "65536"),
    "too long for PUT": ("PUT", "/stations/1", b" " * (64 * KIB + 1), 413, "65536"),
}
TITLES = {400: "Bad Request", 413: "Content Too Large", 422: "Unprocessable Content"}


@pytest.mark.parametrize(("method", "path", "body", "status", "name"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_accepted_is_refused_by_name(api, method, path, body, status, name):
    new_station(api)
    answer = send(api, method, path, body)
    assert_problem(answer, status, TITLES[status], name)
    assert answer.json.keys() == {"type", "title", "status", "detail"}
    assert api.get("/stations").json == {"items": [{"id": 1, "description": "Teste"}], "next": None}
    assert api.get("/transactions").json["items"] == []


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
    assert_problem(send(api, "POST", "/transactions", {"station_id": 1}, content_type), 415, "Unsupported Media Type")
    assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]
    assert api.get("/transactions").json["items"] == []


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"])
def test_a_body_that_is_declared_as_json_is_read_as_utf_8(api, content_type):
    answer = send(api, "POST", "/stations", '{"description": "ação"}'.encode(), content_type)
    assert (answer.status_int, answer.json["description"]) == (201, "ação")


def test_a_body_of_64_kib_is_read(api):
    body = b'{"description": "x"}'
    answer = send(api, "POST", "/stations", body + b" " * (64 * KIB - len(body)))
    assert (answer.status_int, answer.json["description"]) == (201, "x")


def test_what_fails_shows_no_internals(api):
    app.app.get("/fails", callback=lambda: {}["a secret"])
    try:
        answer = send(api, "GET", "/fails")
    finally:
        app.app.routes.pop()
        del app.app.router.static["GET"]["/fails"]
    assert_problem(answer, 500, "Internal Server Error", "log")
    assert answer.json.keys() == {"type", "title", "status", "detail"}
    assert b"secret" not in answer.body
    assert "KeyError: 'a secret'" in answer.errors
    assert send(api, "GET", "/fails").status_int == 404


# Health


def test_alive_is_not_ready(api):
    answer = api.get("/healthz", status=200)
    assert answer.json == {"status": "ok", "version": VERSION}
    answer = send(api, "GET", "/readyz")
    assert_problem(answer, 503, "Service Unavailable", "broker", "127.0.0.1")
    assert answer.json.keys() == {"type", "title", "status", "detail", "database", "broker", "equipment"}
    assert answer.json["database"] == "ok"
    assert "127.0.0.1" in answer.json["broker"]
    assert answer.json["equipment"] == {}
    assert answer.headers["Retry-After"] == "5"


def test_without_its_ledger_the_service_is_not_alive(api):
    new_station(api)
    app.ledger.stop()
    assert_problem(send(api, "GET", "/healthz"), 503, "Service Unavailable", "ledger")
    answer = send(api, "GET", "/readyz")
    assert_problem(answer, 503, "Service Unavailable", "database", "broker")
    assert "ledger" in answer.json["database"]
    assert_problem(send(api, "POST", "/stations", {"description": "x"}), 503, "Service Unavailable")
    assert_problem(send(api, "DELETE", "/stations/1"), 503, "Service Unavailable")
    assert api.get("/stations").json["items"] == [{"id": 1, "description": "Teste"}]


@pytest.mark.parametrize("kind", ["in a file", "garbage"])
def test_without_its_database_the_service_says_so(tmp_path, kind):
    place = tmp_path / "place"
    place.write_text("This is no database. " * 1000)
    with serving(tmp_path, ready=False, database_url=f"sqlite:///{place}{'/x.db' * (kind == 'in a file')}") as api:
        for path in ("/healthz", "/stations", "/stations/1", "/transactions", f"/transactions/{UNKNOWN}"):
            answer = send(api, "GET", path)
            assert_problem(answer, 503, "Service Unavailable", "database")
            assert answer.headers["Retry-After"] == "5"
        answer = send(api, "GET", "/readyz")
        assert_problem(answer, 503, "Service Unavailable", "database", "broker")
        assert answer.json["database"] != "ok"
        assert send(api, "GET", "/swagger/").status_int == 200


# API_TOKEN

GUARDED = ("/stations", "/transactions", "/metrics")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer open",
        "Bearer open sesame!",
        "Bearer OPEN SESAME",
        "open sesame",
        "Basic open sesame",
        "Bearer \xe9",
        "Bearer \xe2\x82\xac",
        "\xff",
    ],
)
def test_without_the_token_no_route_of_the_api_answers(guarded, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    for path, methods in every_path().items():
        for method in methods:
            answer = send(guarded, method, path, b"not even JSON", **headers)
            if path.startswith(GUARDED):
                assert_problem(answer, 401, "Unauthorized", "token")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "sesame" not in answer.json["detail"]
            else:
                assert answer.status_int == (503 if path == "/readyz" else 200)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token_every_route_of_the_api_answers(guarded, scheme):
    headers = {"Authorization": f"{scheme} open sesame"}
    assert send(guarded, "POST", "/stations", {"description": "x"}, **headers).status_int == 201
    assert new_transaction(guarded, **headers)["status"] == "PENDING"
    for path, methods in every_path().items():
        for method in methods:
            assert send(guarded, method, path, **headers).status_int != 401


def test_without_a_token_to_ask_for_everybody_is_welcome(api):
    for authorization in ("Bearer ", "Bearer x", "\xe9"):
        assert send(api, "GET", "/stations", Authorization=authorization).status_int == 200


def test_an_unknown_path_is_not_found_without_a_token_too(guarded):
    assert_problem(send(guarded, "GET", "/nope"), 404, "Not Found")


def test_the_document_asks_for_the_token_where_the_service_does(guarded):
    document = guarded.get("/openapi.json").json
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            guards = path.startswith(GUARDED)
            assert operation.get("security") == ([{"token": []}] if guards else None)
            assert ("401" in operation["responses"]) is guards


def test_the_document_asks_for_no_token_where_the_service_does_not(api):
    document = api.get("/openapi.json").json
    assert "securitySchemes" not in document["components"]
    assert "401" not in json.dumps(document["paths"])
