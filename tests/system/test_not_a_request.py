"""What is not a whole request changes nothing, and gets an error or a closed connection, not a traceback."""

import json

import pytest

from installation import Installation
from raw import BODY, POST, answer, connect, get, reset, talk

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK, LAST = b"14\r\n%b\r\n" % BODY, b"0\r\n\r\n"
TOO_LONG = POST + b"Content-Length: 50\r\n\r\n" + BODY  # it announces more than it has
FULL = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
NEXT = POST + FULL  # a whole request behind one that is not
RETRY = "POST /transactions/019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57/retry"
CHANGES = "POST /stations", "PUT /stations/1", "PATCH /stations/1", "DELETE /stations/1", RETRY

# Bodies in chunks.
CUT_OFF = b"", b"1", b"14\r\n" + BODY[:9], b"14\r\n" + BODY, CHUNK, CHUNK + b"0\r\n"
CUT_OFF += CHUNK + b"0\r\nX: y\r\n", CHUNK + b"5\r\n  "
SIZES = b"zz", b"", b" ", b"-14", b"+14", b"0x14", b"1_4", b" 14", b"13", b"15", b"f" * 17, b"f" * 5000
SIZES += b"14;a=\x01", b"14;=b", b"14;a\n", b"14;" + b"a" * 70_000
ENDS = b"no colon\r\n", b"0\r\n", b"X: \x01\r\n", b"X : y\r\n", b"X: y\r\n z\r\n", b"Content-Length: 3\r\n"
ENDS += (b"X: " + b"a" * 300_000,)
MALFORMED = [size + b"\r\n" + BODY + b"\r\n" + LAST for size in SIZES]
MALFORMED += [CHUNK + b"0\r\n" + end + b"\r\n" for end in ENDS]
MALFORMED += [CHUNK.removesuffix(b"\r\n") + LAST, (CHUNK + LAST).replace(b"\r\n", b"\n")]

# What gunicorn refuses before a route sees it: headers of a request that is right without them, and others.
HEADERS = """Content-Length: 20|Content-Type: text/plain|Expect: pancakes|X-Y : z|X-Y: z\r\n a|X-Y|X: \x01
    |Transfer-Encoding: chunked|Transfer-Encoding: identity"""
LENGTHS = "99999999999999999999", "20, 20", "+20", "-1", ""
CODINGS = "chunked\r\nTransfer-Encoding: chunked", "chunked, gzip", "xchunked"
STARTS = b"POST /stations/\xd9\xa1", b"AB /stations", b"A" * 40 + b" /stations", b"POST /" + b"a" * 40_000
NOT_HTTP = [POST + header.strip(" ").encode() + b"\r\n" + FULL for header in HEADERS.split("|")]
NOT_HTTP += [POST + b"Content-Length: %b\r\n\r\n" % text.encode() + BODY for text in LENGTHS]
NOT_HTTP += [POST + b"Transfer-Encoding: %b\r\n\r\n" % c.encode() + CHUNK + LAST for c in CODINGS]
NOT_HTTP += [NEXT.replace(b"POST /stations", start) for start in STARTS]
NOT_HTTP += [POST + b"X: %b\r\n" % (b"a" * size) * count + FULL for size, count in
             ((40_000, 1), (1, 200), (4200, 4))]  # fmt: skip
NOT_HTTP += [
    POST + b"Content-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK,
    CHUNKED.replace(b"/1.1", b"/1.0") + CHUNK + LAST,
    POST,
    NEXT.replace(b"Host: x\r\n", b""),
    NEXT.replace(b"Host: x\r\n", b"Host: x\r\nHost: x\r\n"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,  # TLS
    b"",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs of this file, with one station."""
    folder = tmp_path_factory.mktemp("not-a-request")
    return Installation(folder, programs_of_file, LOG_LEVEL="DEBUG").start()


@pytest.fixture
def port(shared):
    """The port of a service that afterwards has stored nothing, and logged no traceback."""

    def stored() -> list:
        return [shared.service.get(f"/{name}?limit=200").json for name in ("stations", "transactions")]

    before = stored()
    yield shared.service.port
    assert stored() == before
    assert "Traceback" not in shared.service.said()
    assert "died" not in shared.service.said()


def assert_problem(data: bytes, status: int, word: str) -> None:
    """Check that this is one answer, a problem with this status and this word, and nothing behind it."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), data
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert word in problem["detail"]


def with_route(data: bytes, route: str) -> bytes:
    return data.replace(b"POST /stations", route.encode())


def test_a_request_that_is_cut_off_is_refused(port):
    whole = [TOO_LONG, TOO_LONG.removesuffix(BODY), CHUNKED + CUT_OFF[2]]
    cases = [with_route(data, route) for data in whole for route in (*CHANGES, "POST /transactions")]
    for data in [*cases, *(CHUNKED + rest for rest in CUT_OFF)]:
        assert_problem(talk(port, data), 400, "body")
        reset(port, data)


def test_a_malformed_chunk_is_refused_and_so_is_what_follows(port):
    for data in MALFORMED:
        assert_problem(talk(port, CHUNKED + data + NEXT), 400, "body")
        reset(port, CHUNKED + data + NEXT)


def test_what_gunicorn_refuses_reaches_no_route(port):
    for data in NOT_HTTP:
        if said := talk(port, data):
            assert_problem(said, int(said[9:12]), "This is not HTTP as we take it: ")
        reset(port, data)


def test_expect_host_and_upgrade_are_as_documented(port):
    get = b"GET /stations/1 HTTP/1.1\r\n%b\r\n"
    for headers, status in (
        (b"Host: x\r\nExpect: pancakes\r\n", 417),
        (b"Host: x\r\nExpect: pancakes\r\nExpect: 100-continue\r\n", 417),
        (b"", 400),
        (b"Host: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", 200),
    ):
        assert talk(port, get % headers).startswith(b"HTTP/1.1 %d " % status)


def test_a_body_that_is_too_large_is_read_and_the_answer_announces_the_end(port):
    with connect(port) as client:
        client.sendall(POST + b"Content-Length: 5000000\r\n\r\n")
        for _ in range(50):
            client.sendall(bytes(100_000))
        head = answer(client)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close" in head


def test_a_chunked_body_may_have_extensions_trailers_and_a_request_behind_it(port):
    body = BODY.replace(b'"x"', b'"Teste"')
    put = with_route(CHUNKED, "PUT /stations/1") + b"%x;a=b\r\n%s\r\n" % (len(body), body)
    last = b"GET /stations/1 HTTP/1.1\r\nHost: x\r\n\r\n"
    for end in (b"0\r\n", b'00; a="\\"b";c = d\r\n', b"0\r\nX: y\r\nExpires:\r\n"):
        assert talk(port, (put + end + b"\r\n") * 3 + last).count(b"HTTP/1.1 200 ") == 4


def test_an_answer_is_not_followed_by_another_if_the_body_was_malformed(port):
    for route, status in (("GET /stations/1", 200), ("DELETE /stations/1", 400)):
        for rest in (b"zz\r\n", b"5\r\nab", b"1\r\nabc\r\n"):
            said = talk(port, with_route(CHUNKED, route) + rest + NEXT)
            assert said.startswith(b"HTTP/1.1 %d " % status)
            assert said.count(b"HTTP/1.1 ") == 1


def test_an_encoded_body_is_refused(port):
    for route in CHANGES:
        for encoding in ("gzip", "identity", "", "gzip\r\nContent-Encoding: br"):
            data = POST + f"Content-Encoding: {encoding}\r\n".encode() + FULL
            assert_problem(talk(port, with_route(data, route)), 415, "Content-Encoding")
        for coding in ("gzip, chunked", "deflate,chunked", "Gzip, Chunked"):
            for body in (CHUNK + LAST, LAST):
                data = POST + f"Transfer-Encoding: {coding}\r\n\r\n".encode() + body
                assert_problem(talk(port, with_route(data, route)), 415, "Transfer-Encoding")


def test_a_key_that_was_sent_twice_is_refused(port):
    for keys in (b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n", b"Idempotency-Key: ,\r\n"):
        data = with_route(POST, "POST /transactions") + keys + b'Content-Length: 17\r\n\r\n{"station_id": 1}'
        assert_problem(talk(port, data), 400, "Idempotency-Key")


def test_the_path_is_that_of_the_request(port):
    assert get(port, "/stations/%31") == get(port, "/stations/1")
    assert get(port, "/stations?limit=%31")[0] == 200
    for name in ("SCRIPT_NAME", "SCRIPT-NAME", "PATH_INFO", "PATH-INFO"):
        assert get(port, "/stations/1", f"{name}: /stations")[0] == 200
        assert get(port, "/healthz", f"{name}: /nowhere")[0] == 200
    for line in (b"GET http://x/stations/1", b"GET HTTP://x", b"\r\n\r\nGET /stations/1"):
        assert talk(port, line + b" HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_head_may_have_16_kib(port):
    assert get(port, "/stations/1?" + "a" * 8000, *["X: 1"] * 98)[0] == 200
    assert get(port, "/stations/1", "X: " + "a" * 16_000)[0] == 200
    assert get(port, "/stations/1", "X: " + "a" * 16_400)[0] == 431
    assert get(port, "/stations/1?" + "a" * 8200)[0] == 414


def test_a_client_that_expects_100_is_told_to_continue_but_not_if_its_body_is_cut_off(port):
    whole = BODY.replace(b'"x"', b'"Teste"')
    head = with_route(POST, "PUT /stations/1") + b"Expect: 100-continue\r\n"
    with connect(port) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(whole))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(whole)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    assert_problem(talk(port, head + b"Content-Length: 50\r\n\r\n" + whole), 400, "body")


def test_head_gets_a_head_with_names_as_in_the_document_and_nothing_behind_it(port):
    both = b"HEAD /events HTTP/1.1\r\nHost: x\r\n\r\nHEAD /stations/1 HTTP/1.1\r\nHost: x\r\n\r\n"
    events, station, rest = talk(port, both).split(b"\r\n\r\n")
    assert events.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nContent-Type: text/event-stream" in events
    assert station.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nETag: " in station
    assert b"\r\nX-Request-ID: " in station
    assert rest == b""
