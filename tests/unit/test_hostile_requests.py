"""Hundreds of hostile HTTP requests: each gets a JSON answer."""

import json
import re
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webtest import TestRequest

from calls import new_station, new_transaction
from trial import FULL

MB = 1_000_000
COUNT = 1000 if FULL else 200
METHODS = "GET GET POST POST PUT PATCH DELETE HEAD OPTIONS TRACE CONNECT get BREW"
RIGHT = """GET /stations|POST /stations|PUT /stations/1|PATCH /stations/1|GET /stations/1|DELETE /stations/1
    |DELETE /stations/2|POST /transactions|POST /transactions/|GET /transactions|GET /transactions/{key}"""
FOLDERS = "/ /stations /stations/ /transactions/ /swagger/ /static/ /healthz /readyz /openapi.json"
IDS = "1 2 01 0 -1 1.0 2147483647 2147483648 1e3 {key} {none} é"
HEADERS = """ACCEPT ACCEPT_ENCODING AUTHORIZATION CONNECTION COOKIE CONTENT_ENCODING EXPECT FORWARDED HOST
    IF_MATCH IF_MODIFIED_SINCE IF_NONE_MATCH IDEMPOTENCY_KEY ORIGIN PREFER RANGE TE TRANSFER_ENCODING UPGRADE
    X_FORWARDED_FOR X_FORWARDED_HOST X_FORWARDED_PROTO X_HTTP_METHOD_OVERRIDE X_SCRIPT_NAME"""
VALUES = "wait=0 wait=-1 bytes=0-9 bytes=9- bytes=x chunked gzip * k \xff"
TYPES = ["application/json", "application/json", "application/json; charset=x", "", "text/plain", "\xff"]
GOOD = [b'{"description": "x"}', b'{"station_id": 1}', b'{"station_id": 2}', b"{}", b"[]"]
LARGE = [b"", b"[" * 60_000, b'{"description":' * 4000, b" " * 65_537, b"9" * MB, b'{"station_id": 1e999}']


def one(*values: str | bytes):
    """One of these values, or of the words in a text."""
    return st.sampled_from(values[0].split() if len(values) == 1 else values)


latin = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=300)  # servers accept it
words = one(f"{IDS} stations transactions swagger static .. . start.js") | latin
paths = st.builds("{}{}".format, one(FOLDERS), words | st.lists(words, max_size=4).map("/".join))
asked = one(*RIGHT.replace("\n    ", "").split("|")) | st.builds("{} {}".format, one(METHODS), paths)
fields = st.builds(
    "{}={}".format,
    one("limit", "after", "status", "station_id", "x", "", "\xff"),
    one(f"{IDS} PENDING 200 % %ff %00 + null") | latin,
)
queries = st.lists(fields, max_size=3).map("&".join) | latin
texts = one(VALUES) | latin.filter(lambda text: "wait" not in text)  # it would wait
headers = st.dictionaries(one(HEADERS).map("HTTP_{}".format), texts, max_size=4)
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)  # no surrogates
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | short,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(short, some, max_size=3),
    max_leaves=3,
).map(lambda value: json.dumps(value).encode())
objects = st.builds(
    lambda name, value: b'{"%s": %s}' % (name.encode(), value),
    one("description", "station_id", "id", "status", ""),
    json_values,
)
bodies = one(*GOOD) | objects | json_values | st.binary(max_size=60) | one(*LARGE)


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_every_request_is_answered_with_json(api):
    for _ in range(2):
        new_station(api)
    key = new_transaction(api)["id"]
    answered = Counter()

    @settings(max_examples=COUNT, suppress_health_check=list(HealthCheck))
    @given(asked, queries, headers, one(*TYPES), bodies)
    def ask(route, query, headers, content_type, body):
        request = TestRequest.blank("/", headers={}, method="POST", body=body)
        method, _, path = route.partition(" ")
        path = path.replace("{key}", key).replace("{none}", str(UUID(int=7)))
        request.environ |= headers | {"REQUEST_METHOD": method, "PATH_INFO": path}
        request.environ |= {"QUERY_STRING": query, "CONTENT_TYPE": content_type}
        answer = api.do_request(request, expect_errors=True)
        empty = answer.body == b""  # this reads the body to its end
        status, given = answer.status_int, answer.headers.get("Content-Type", "").partition(";")[0]
        answered[status] += 1
        assert status in {200, 201, 204, 206, 302, 304, 400, 404, 405, 409, 413, 415, 416, 422, 503}
        assert status != 503 or path.startswith("/readyz")
        if status in (204, 302, 304):
            assert empty
        elif status >= 400:
            assert given == "application/problem+json"
            assert method == "HEAD" or answer.json["status"] == status
        elif not re.match(r"/*$|/(swagger|static)\b", path):
            assert given == "application/json"
            assert method == "HEAD" or answer.json is not None

    ask()
    assert answered.keys() >= {200, 201, 404, 405, 422}
    assert api.get(f"/transactions/{key}").json["status"] == "PENDING"
    assert api.post_json("/stations", {"description": "still there"}).status_int == 201
