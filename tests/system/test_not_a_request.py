"""What is not a whole request changes nothing, and gets an error or a closed connection, not a traceback."""

import json

import pytest

from checks import ask, online
from programs import Broker, Equipment, Service, wait_until
from raw import BODY, POST, connect, get, reset, talk

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"\r\n0\r\n\r\n"
KEYED = POST.replace(b"stations", b"transactions") + b"Connection: close\r\nContent-Length: 17\r\n"
GET = b"GET /stations/1 HTTP/1.1\r\nHost: x\r\n\r\n"
FULL = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
NEXT = POST + FULL  # a whole request behind one that is not

# Our own answers, as problems.
CUT = {
    "fewer bytes than Content-Length": POST + b"Content-Length: 50\r\n\r\n" + BODY,
    "no byte of the body": POST + b"Content-Length: 50\r\n\r\n",
    "no chunk": CHUNKED,
    "half a size": CHUNKED + b"1",
    "half a chunk": CHUNKED + b"14\r\n" + BODY[:9],
    "a chunk without its end": CHUNKED + b"14\r\n" + BODY,
    "no last chunk": CHUNKED + b"14\r\n" + BODY + b"\r\n",
    "half a last chunk": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\n",
    "half a trailer": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nX: y\r\n",
    "a second chunk that is cut off": CHUNKED + b"14\r\n" + BODY + b"\r\n5\r\n  ",
    "a PUT that is cut off": POST.replace(b"POST /stations", b"PUT /stations/1")
    + b"Content-Length: 50\r\n\r\n"
    + BODY,
    "a PATCH that is cut off": POST.replace(b"POST /stations", b"PATCH /stations/1")
    + b"Content-Length: 50\r\n\r\n"
    + BODY,
    "a DELETE that is cut off": POST.replace(b"POST /stations", b"DELETE /stations/1")
    + b"Content-Length: 50\r\n\r\n"
    + BODY,
    "a DELETE with half a chunk": CHUNKED.replace(b"POST /stations", b"DELETE /stations/1")
    + b"14\r\n"
    + BODY,
    "a transaction that is cut off": POST.replace(b"stations", b"transactions")
    + b'Content-Length: 50\r\n\r\n{"station_id": 1}',
}
MALFORMED = {
    "a size that is not a number": CHUNKED + b"zz\r\n" + BODY + LAST + NEXT,
    "no size": CHUNKED + b"\r\n" + BODY + LAST + NEXT,
    "a blank for a size": CHUNKED + b" \r\n" + BODY + LAST + NEXT,
    "a negative size": CHUNKED + b"-14\r\n" + BODY + LAST + NEXT,
    "a size with a sign": CHUNKED + b"+14\r\n" + BODY + LAST + NEXT,
    "a size with a prefix": CHUNKED + b"0x14\r\n" + BODY + LAST + NEXT,
    "a size with an underscore": CHUNKED + b"1_4\r\n" + BODY + LAST + NEXT,
    "a blank before a size": CHUNKED + b" 14\r\n" + BODY + LAST + NEXT,
    "a size that is too small": CHUNKED + b"13\r\n" + BODY + LAST + NEXT,
    "a size that is too large": CHUNKED + b"15\r\n" + BODY + LAST + NEXT,
    "a size of 2**68": CHUNKED + b"f" * 17 + b"\r\n" + BODY + LAST,
    "a size of 5,000 digits": CHUNKED + b"f" * 5000 + b"\r\n" + BODY + LAST,
    "no line end behind a chunk": CHUNKED + b"14\r\n" + BODY + b"0\r\n\r\n" + NEXT,
    "LF for CRLF": CHUNKED + b"14\n" + BODY + b"\n0\n\n" + NEXT,
    "an extension that is not text": CHUNKED + b"14;a=\x01\r\n" + BODY + LAST + NEXT,
    "an extension without a name": CHUNKED + b"14;=b\r\n" + BODY + LAST + NEXT,
    "an extension with a line end": CHUNKED + b"14;a\n\r\n" + BODY + LAST + NEXT,
    "a size line without an end": CHUNKED + b"14;" + b"a" * 70_000,
    "a trailer without a colon": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nno colon\r\n\r\n" + NEXT,
    "a last chunk that comes twice": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\n0\r\n\r\n" + NEXT,
    "a trailer with a control character": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nX: \x01\r\n\r\n" + NEXT,
    "a trailer with a blank in its name": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nX : y\r\n\r\n" + NEXT,
    "a trailer that is folded": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nX: y\r\n z\r\n\r\n" + NEXT,
    "a length in a trailer": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nContent-Length: 3\r\n\r\n" + NEXT,
    "trailers that are too long": CHUNKED + b"14\r\n" + BODY + b"\r\n0\r\nX: " + b"a" * 300_000,
}
# What gunicorn refuses before a route sees it.
REFUSED_BY_GUNICORN = {
    "an endless body": POST + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
    "a length beside chunks": POST
    + b"Content-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n"
    + BODY,
    "chunks beside a length": POST + b"Transfer-Encoding: chunked\r\n" + FULL,
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n14\r\n" + BODY + LAST,
    "chunks that are not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n14\r\n" + BODY + LAST,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n14\r\n" + BODY + LAST,
    "identity with a length": POST + b"Transfer-Encoding: identity\r\n" + FULL,
    "chunks in HTTP/1.0": CHUNKED.replace(b"/1.1", b"/1.0") + b"14\r\n" + BODY + LAST,
    "two lengths": POST + b"Content-Length: 20\r\n" + FULL,
    "a list of lengths": POST + b"Content-Length: 20, 20\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +20\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "no digit of a length": POST + b"Content-Length: \r\n\r\n" + BODY,
    "two types": POST + b"Content-Type: text/plain\r\n" + FULL,
    "another expectation": POST + b"Expect: pancakes\r\n" + FULL,
    "a blank before a colon": POST + b"X-Y : z\r\n" + FULL,
    "a folded header": POST + b"X-Y: z\r\n a\r\n" + FULL,
    "a header without a colon": POST + b"X-Y\r\n" + FULL,
    "a path that is not ASCII": POST.replace(b"/stations", b"/stations/\xd9\xa1") + FULL,
    "a method of two letters": POST.replace(b"POST", b"AB") + FULL,
    "a method of 40 letters": POST.replace(b"POST", b"A" * 40) + FULL,
    "a long path": POST.replace(b"/stations", b"/" + b"a" * 40_000) + FULL,
    "a long header": POST + b"X: %s\r\n" % (b"a" * 40_000) + FULL,
    "many headers": POST + b"X: y\r\n" * 200 + FULL,
    "headers of 17 kB in all": POST + b"X: %s\r\n" % (b"a" * 4200) * 4 + FULL,
    "a header with a control character": POST + b"X: \x01\r\n" + FULL,
    "half a head": POST,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
    "nothing": b"",
}
ENCODED = {
    "gzip": b"Content-Encoding: gzip\r\n",
    "identity": b"Content-Encoding: identity\r\n",
    "no encoding": b"Content-Encoding:\r\n",
    "two encodings": b"Content-Encoding: gzip\r\nContent-Encoding: br\r\n",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The service with one station and an equipment; all tests of this file ask it."""
    folder = tmp_path_factory.mktemp("not-a-request")
    broker = Broker(folder).start()
    equipment = Equipment(folder, broker).start()
    started = Service(folder, broker, LOG_LEVEL="DEBUG").start()
    wait_until(lambda: online(started), "all are online")
    assert started.post("/stations", {"description": "Teste"}).status == 201
    yield started
    for program in (started, equipment, broker):
        program.close()


@pytest.fixture(autouse=True)
def unchanged(service):
    """After each test the same is stored as before, and the log has no traceback."""
    before = stored(service)
    yield
    assert stored(service) == before
    assert "Traceback" not in service.said()
    assert "died" not in service.said()


def stored(service: Service) -> list:
    return [service.get(f"/{name}?limit=200").json["items"] for name in ("stations", "transactions")]


def assert_problem(data: bytes, status: int, word: str) -> None:
    """Check that this is one answer, a problem with this status and this word, and nothing behind it."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), data
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert word in problem["detail"]


@pytest.mark.parametrize("case", CUT)
def test_a_request_that_is_cut_off_is_refused(service, case):
    assert_problem(talk(service.port, CUT[case]), 400, "body")
    reset(service.port, CUT[case])


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_chunk_is_refused_and_so_is_what_follows(service, case):
    assert_problem(talk(service.port, MALFORMED[case]), 400, "body")
    reset(service.port, MALFORMED[case])


@pytest.mark.parametrize("case", REFUSED_BY_GUNICORN)
def test_what_gunicorn_refuses_reaches_no_route(service, case):
    if answer := talk(service.port, REFUSED_BY_GUNICORN[case]):
        assert_problem(answer, int(answer[9:12]), "This is not HTTP as we take it: ")
    reset(service.port, REFUSED_BY_GUNICORN[case])


@pytest.mark.parametrize("end", [b"0\r\n", b'00; a="\\"b";c = d\r\n', b"0\r\nX: y\r\nExpires:\r\n"])
def test_a_chunked_body_may_have_extensions_trailers_and_a_request_behind_it(service, end):
    body = BODY.replace(b'"x"', b'"Teste"')
    chunks = b"%x;a=b\r\n%s\r\n" % (len(body), body)
    put = CHUNKED.replace(b"POST /stations", b"PUT /stations/1") + chunks + end + b"\r\n"
    assert talk(service.port, put * 3 + GET).count(b"HTTP/1.1 200 ") == 4


@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nab", b"1\r\nabc\r\n"])
@pytest.mark.parametrize(("route", "status"), [(b"GET /stations/1", 200), (b"DELETE /stations/1", 400)])
def test_an_answer_is_not_followed_by_another_if_the_body_was_malformed(service, route, status, rest):
    data = route + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + rest + NEXT
    answer = talk(service.port, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


CHANGES = [
    b"POST /stations",
    b"PUT /stations/1",
    b"PATCH /stations/1",
    b"DELETE /stations/1",
    b"POST /transactions/019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57/retry",
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", ENCODED)
def test_an_encoded_body_is_refused(service, case, change):
    data = POST.replace(b"POST /stations", change) + ENCODED[case] + FULL
    assert_problem(talk(service.port, data), 415, "Content-Encoding")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("coding", [b"gzip, chunked", b"deflate,chunked", b"Gzip, Chunked"])
def test_a_body_with_another_transfer_coding_is_refused(service, coding, change):
    for body in (b"14\r\n" + BODY + LAST, b"0\r\n\r\n"):
        data = POST.replace(b"POST /stations", change) + b"Transfer-Encoding: %s\r\n\r\n" % coding + body
        assert_problem(talk(service.port, data), 415, "Transfer-Encoding")


def test_names_of_headers_are_written_as_in_the_document(service):
    document = service.get("/openapi.json").json["components"]["headers"]
    names, seen = {name.lower(): name for name in document}, set()
    for method, path, headers in (
        *(("GET", path, []) for path in ("/stations/1", "/stations?limit=1", "/nowhere", "/", "/swagger/")),
        ("PATCH", "/stations/1", [("Content-Type", "application/json")]),
        ("GET", "/stations/1", [("If-None-Match", "*")]),
        ("DELETE", "/stations/1", [("If-Match", '"x"')]),
        ("TRACE", "/stations", []),
        ("OPTIONS", "/", []),
    ):
        _, given, _ = ask(service, method, path, headers, b"{}" if method == "PATCH" else b"")
        for name in given:
            assert name == names.get(name.lower(), name), (method, path)
        seen |= set(given)
    assert {"ETag", "Allow", "X-Request-ID", "Cache-Control"} <= seen


@pytest.mark.parametrize(
    "keys", [b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n", b"Idempotency-Key: ,\r\n"]
)
def test_a_key_that_was_sent_twice_is_refused(service, keys):
    assert_problem(talk(service.port, KEYED + keys + b'\r\n{"station_id": 1}'), 400, "Idempotency-Key")


def test_a_number_may_be_escaped(service):
    assert get(service.port, "/stations/%31") == get(service.port, "/stations/1")
    assert get(service.port, "/stations?limit=%31")[0] == 200


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "SCRIPT-NAME", "PATH_INFO", "PATH-INFO"])
def test_no_header_changes_the_path(service, name):
    assert get(service.port, "/stations/1", f"{name}: /stations")[0] == 200
    assert get(service.port, "/healthz", f"{name}: /nowhere")[0] == 200


def test_a_client_that_expects_100_is_told_to_continue_but_not_if_its_body_is_cut_off(service):
    whole = BODY.replace(b'"x"', b'"Teste"')
    head = POST.replace(b"POST /stations", b"PUT /stations/1") + b"Expect: 100-continue\r\n"
    with connect(service.port) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(whole))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(whole)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    assert_problem(talk(service.port, head + b"Content-Length: 50\r\n\r\n" + whole), 400, "body")


@pytest.mark.parametrize(
    "path",
    [*("/", "/stations", "/stations/1", "/transactions", "/healthz", "/readyz", "/metrics", "/openapi.json"),
     *("/swagger/", "/static/page.js", "/stations/7", "/stations/x", "/nowhere", "/stations?limit=x")],
)  # fmt: skip
def test_head_answers_as_get_does_but_without_a_body(service, path):
    known, wanted, _ = ask(service, "GET", path)
    status, headers, body = ask(service, "HEAD", path)
    assert (status, headers["Content-Type"], body) == (known, wanted["Content-Type"], b"")
