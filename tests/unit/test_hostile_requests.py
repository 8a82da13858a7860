"""Thousands of hostile HTTP requests: each gets a JSON answer."""

import re
from collections import Counter
from random import Random
from uuid import UUID

import pytest
from webtest import TestRequest

from calls import new_station, new_transaction
from trial import FULL

COUNT, LONG, NONE = 10_000 if FULL else 2000, 100_000, str(UUID(int=7))
METHODS = "GET POST PUT PATCH DELETE HEAD OPTIONS TRACE CONNECT get BREW"
RIGHT = """GET /stations|POST /stations|PUT /stations/1|PATCH /stations/1|GET /stations/1|DELETE /stations/1
    |DELETE /stations/2|POST /transactions|POST /transactions/|GET /transactions|GET /transactions/{key}"""
FOLDERS = "/ /stations /stations/ /transactions/ /swagger/ /static/ /healthz /readyz /openapi.json"
IDS = "1 2 01 0 -1 1.0 2147483647 2147483648 1e3 {key} {none} é"
HEADERS = """ACCEPT ACCEPT_ENCODING AUTHORIZATION CONNECTION COOKIE CONTENT_ENCODING EXPECT FORWARDED HOST
    IF_MATCH IF_MODIFIED_SINCE IF_NONE_MATCH IDEMPOTENCY_KEY ORIGIN PREFER RANGE TE TRANSFER_ENCODING UPGRADE
    X_FORWARDED_FOR X_FORWARDED_HOST X_FORWARDED_PROTO X_HTTP_METHOD_OVERRIDE X_SCRIPT_NAME"""
VALUES = "wait=0 wait=-1 bytes=0-9 bytes=9- bytes=x chunked gzip * k \xff"
TYPES = ["application/json", "application/json", "application/json; charset=x", "", "text/plain", "\xff"]
STATUSES = {200, 201, 204, 206, 302, 304, 400, 404, 405, 409, 412, 413, 415, 416, 422, 503}
BODIES = [b'{"description": "x"}', b'{"station_id": 1}', b'{"station_id": 2}', b"{}", b"[]"] * 2
BODIES += [b"", b"[" * LONG, b'{"description":' * 4000, b" " * LONG, b"9" * LONG, b'{"station_id": 1e999}']
JSON = r'null true -0.5 1e400 "" "\u0000" "\ud800" "ä🔋" [[]] {"":{}}'


def drawn(chance: Random, key: str) -> TestRequest:
    """A request of any kind."""

    def one(text: str, *more: str) -> str:
        return chance.choice([*text.split(), *more]).replace("{key}", key).replace("{none}", NONE)

    def latin() -> str:
        found = chance.choices([*range(32, 127), *range(160, 256)], k=chance.randint(0, 60))
        return bytes(found).decode("latin-1").replace("wait", "")  # it would wait

    parts = [one(f"{IDS} stations transactions . .. start.js", latin()) for _ in range(chance.randint(0, 4))]
    right = chance.choice(RIGHT.replace("\n    ", "").split("|")).replace("{key}", key)
    any_path = f"{one(METHODS)} {one(FOLDERS)}{'/'.join(parts)}"
    method, _, path = chance.choice([right, any_path]).partition(" ")
    names, values = "limit after status station_id x", f"{IDS} PENDING 200 % %ff %00 + null"
    fields = [f"{one(names, '')}={one(values, latin())}" for _ in parts]
    objects = one(JSON), f'{{"{one("description station_id id", "")}": {one(JSON)}}}'
    strange = [*(text.encode() for text in objects), chance.randbytes(60)]
    body = chance.choice([*BODIES, *strange * 5])
    request = TestRequest.blank("/", headers={}, method="POST", body=body)
    given = chance.sample(HEADERS.split(), chance.randint(0, 4))
    request.environ |= {f"HTTP_{header}": one(VALUES, latin()) for header in given}
    request.environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "CONTENT_TYPE": chance.choice(TYPES)}
    request.environ["QUERY_STRING"] = chance.choice(["&".join(fields), latin()])
    return request


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_every_request_is_answered_with_json(api):
    for _ in range(2):
        new_station(api)
    key, chance, answered = (
        new_transaction(api)["id"],
        Random(7),
        Counter(),
    )  # the same requests in every run
    for _ in range(COUNT):
        request = drawn(chance, key)
        method, path = request.environ["REQUEST_METHOD"], request.environ["PATH_INFO"]
        answer = api.do_request(request, expect_errors=True)
        empty = answer.body == b""  # this reads the body to its end
        status, given = answer.status_int, answer.headers.get("Content-Type", "").partition(";")[0]
        answered[status] += 1
        assert status in STATUSES, request
        assert status != 503 or path.startswith("/readyz"), request
        if status in (204, 302, 304):
            assert empty
        elif status >= 400:
            assert given == "application/problem+json", request
            assert method == "HEAD" or answer.json["status"] == status
        elif not re.match(r"/*$|/(swagger|static)\b", path):
            assert given == "application/json", request
            assert method == "HEAD" or answer.json is not None
    assert answered.keys() >= {200, 201, 404, 405, 422}
    assert api.get(f"/transactions/{key}").json["status"] == "PENDING"
    assert api.post_json("/stations", {"description": "still there"}).status_int == 201
