"""The real nginx in front of the real service: slow clients, dead replicas, errors."""

import gzip
import http.client
import json
import socket
import threading
from contextlib import ExitStack, suppress

import pytest

import raw
from installation import Installation
from load import Load
from programs import Nginx, wait_until

HEAD = b"POST /transactions HTTP/1.1\r\nHost: energy2go\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"station_id": 1}).encode()


@pytest.fixture
def nginx(programs):
    """A function that starts nginx in front of these services."""

    def start(*services) -> Nginx:
        programs.append(Nginx(services))
        return programs[-1].start()

    return start


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs of this file, for those tests that end none of them."""
    options = {"API_TOKEN": "", "LOG_LEVEL": "DEBUG"}
    return Installation(tmp_path_factory.mktemp("nginx"), programs_of_file, **options).start()


@pytest.fixture(scope="module")
def proxy(shared, programs_of_file):
    programs_of_file.append(Nginx([shared.service]))
    return programs_of_file[-1].start()


def test_clients_that_send_byte_after_byte_block_no_others(proxy):
    endless, long = HEAD + b"X-Slow: ", HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
    with ExitStack() as ends:
        slow = [ends.enter_context(raw.connect(proxy.port)) for _ in range(200)]
        for number, connection in enumerate(slow):
            connection.sendall(long if number % 2 else endless)
        for position in range(len(BODY)):
            assert proxy.post("/transactions", {"station_id": 1}).status == 201
            for connection in slow:
                connection.sendall(BODY[position : position + 1])
        # A slow request that ends is answered like any other.
        for connection in slow[1::2]:
            assert connection.recv(100).startswith(b"HTTP/1.1 201 ")
        for connection in slow[::2]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_a_replica_that_dies_is_passed_over(postgres, service, nginx, equipment):
    equipment()
    url = postgres.fresh()
    replicas = [service(DATABASE_URL=url, name=f"replica-{number}") for number in range(2)]
    proxy = nginx(*replicas)
    proxy.post("/stations", {"description": "Teste"})
    load = Load(proxy, clients=4, pause=0.01).start()

    load.more(30)
    replicas[0].crash()
    load.more(100)
    replicas[0].start()
    said = len(proxy.output.read_text())
    wait_until(lambda: f":{replicas[0].port}\n" in proxy.output.read_text()[said:], "it has its share again")
    load.stop()
    assert set(load.statuses) <= {200, 201}
    assert not load.broken
    rows = postgres.execute('SELECT id FROM "transaction"', url.rpartition("/")[2])
    assert set(load.accepted) == {str(key) for (key,) in rows}, "something was stored twice, or not"
    assert "no live upstreams" not in proxy.said()


class BreaksOff:
    """A replica that reads a request and dies before it answers; `requests` are those it read."""

    def __init__(self, ends: ExitStack):
        self.requests = []
        self._server = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()
        ends.callback(self._server.shutdown, socket.SHUT_RDWR)

    def _run(self) -> None:
        with suppress(OSError):  # the test has ended
            while True:
                connection, _ = self._server.accept()
                with connection:
                    self.requests.append(connection.recv(65536))


ADVICE = [
    ("POST", "/transactions", {}, 1, "look for the transaction"),
    ("POST", "/transactions", {"Idempotency-Key": "7f3c"}, 2, "With an Idempotency-Key, send"),
    ("POST", "/transactions/", {"Idempotency-Key": "7f3c"}, 2, "With an Idempotency-Key, send"),
    ("POST", "/transactions/7/retry", {}, 1, "retry again"),
    ("POST", "/stations?x", {"Idempotency-Key": "7f3c"}, 1, "Look for the station"),
    ("PATCH", "/stations/1", {}, 1, "404 or 412"),
    ("PUT", "/stations/1", {}, 2, "404 or 412"),
    ("GET", "/transactions", {}, 2, "before it answered. Send the request again."),
]


def test_only_what_may_be_done_twice_is_sent_twice(nginx):
    with ExitStack() as ends:
        replicas = [BreaksOff(ends), BreaksOff(ends)]
        for method, path, headers, times, advice in ADVICE:
            for replica in replicas:
                replica.requests.clear()
            body = None if method == "GET" else {"station_id": 1}
            answer = nginx(*replicas).request(method, path, body, **headers)
            assert answer.status == 502
            assert answer.headers["Retry-After"]
            assert advice in answer.json["detail"]
            unknown = "outcome is unknown" in answer.json["detail"]
            cause = "about:blank" if method == "GET" else "/problems/outcome-unknown"
            assert (unknown, answer.json["type"]) == (method != "GET", cause)
            assert sum(len(replica.requests) for replica in replicas) == times, (method, path)


def test_what_the_proxy_answers_itself_is_a_problem_too(nginx, service):
    running = service(ready=False)
    proxy = nginx(running)
    answers = [proxy.post("/transactions", b"x" * 100_000)]
    running.stop()
    answers.append(proxy.get("/stations"))
    other = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60, source_address=("127.0.0.2", 0))
    running.start()
    wait_until(lambda: proxy.get("/healthz").status == 200, "it is found again")
    running.stop()
    for path in ("/metrics", "/metrics/", "//metrics", "/x/../%6detrics", "/metrics?x", "/readyz"):
        other.request("GET", path)
        answers.append(other.getresponse())
        answers[-1].json = json.loads(answers[-1].read())
    other.close()
    assert [answer.status for answer in answers] == [413, 502, *[403] * 5, 502]  # the page needs /readyz
    assert "nothing was stored" in answers[1].json["detail"]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["status"] == answer.status
        assert answer.json.keys() == {"title", "status", "detail", "type"}


HOST = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
GET = b"GET /stations" + HOST
NOT_HTTP = {
    "a URL of 40 kB": (b"GET /" + b"a" * 40_000 + HOST + b"\r\n", 414),
    "a URL of 9 kB, too long for gunicorn": (b"GET /" + b"a" * 9000 + HOST + b"\r\n", 414),
    "a path above the root": (b"GET /../x" + HOST + b"\r\n", 400),
    "a path that is not ASCII": (b"GET /stations/\xd9\xa1" + HOST + b"\r\n", 400),
    "a header of 40 kB": (GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "200 headers, too many for gunicorn": (GET + b"X: y\r\n" * 200 + b"\r\n", 431),
    "no host": (b"GET /stations HTTP/1.1\r\n\r\n", 400),
    "TRACE": (b"TRACE /stations" + HOST + b"\r\n", 405),
    "HTTP/3": (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
    "its own page": (b"GET /problem" + HOST + b"\r\n", 404),
    "an unknown coding": (HEAD + b"Transfer-Encoding: x\r\n\r\n", 501),
    "a malformed chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a body that is too large": (HEAD + b"Content-Length: 100000\r\n\r\n", 413),
}


def test_what_is_not_http_gets_a_problem_from_the_proxy_or_through_it(proxy):
    for data, status in NOT_HTTP.values():
        with raw.connect(proxy.port) as connection:
            connection.sendall(data)
            head, _, body = raw.answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        assert b"\r\nContent-Type: application/problem+json" in head, head
        assert json.loads(body)["status"] == status
    assert len(proxy.get("/stations?q=description").json["items"]) == 0


def test_what_the_service_needs_reaches_it_and_no_secret_is_logged(nginx, service, equipment):
    equipment()
    behind = service(API_TOKEN="a-secret-token", LOG_LEVEL="DEBUG")
    proxy = nginx(behind)
    assert proxy.get("/stations").status == 401
    known = {"Authorization": "Bearer a-secret-token"}
    assert proxy.post("/stations", {"description": "Teste"}, **known).headers["Location"] == "/stations/1"
    known |= {"Idempotency-Key": "a-secret-key", "Prefer": "wait=20"}
    first, second = (proxy.post("/transactions", {"station_id": 1}, **known) for _ in range(2))
    assert first.headers["Preference-Applied"] == "wait=20"
    assert first.json["status"] in ("COMPLETED", "ERROR")
    assert second.json["id"] == first.json["id"]
    found = proxy.get("/transactions?idempotency_key=a-secret-key&limit=1", **known)
    assert [one["id"] for one in found.json["items"]] == [first.json["id"]]
    behind.stop()
    assert proxy.get("/transactions/?idempotency_key=a-secret-key", **known).status in (502, 503)
    said = proxy.said() + proxy.output.read_text() + behind.said()
    assert '"POST /transactions HTTP/1.1" 201' in said
    assert '"GET /transactions" 200' in said
    assert "secret" not in said


def test_a_change_compares_tags_through_a_proxy_that_compresses(shared, proxy):
    path = f"/stations/{shared.station()}"
    first = proxy.get(path, Accept_Encoding="gzip")
    assert (first.headers["Content-Encoding"], first.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert json.loads(gzip.decompress(first.body)) == proxy.get(path).json
    tag = first.headers["ETag"]
    assert tag.startswith('W/"')
    same = proxy.get(path, Accept_Encoding="gzip", If_None_Match=tag)
    assert (same.status, same.body) == (304, b"")

    def change(method: str, tag: str) -> int:
        body = None if method == "DELETE" else {"description": "theirs"}
        return proxy.request(method, path, body, Accept_Encoding="gzip", If_Match=tag).status

    assert [change(method, tag) for method in ("PUT", "PATCH", "PUT", "DELETE")] == [200, 412, 412, 412]
    assert change("DELETE", proxy.get(path, Accept_Encoding="gzip").headers["ETag"]) == 204


def test_an_id_of_a_request_is_passed_on_or_given(shared, proxy):
    assert proxy.get("/stations", X_Request_ID="mine").headers["X-Request-ID"] == "mine"
    replaced = proxy.get("/stations", X_Request_ID="a b").headers["X-Request-ID"]
    for known in ("mine", replaced):
        wait_until(lambda known=known: f"request={known}" in shared.service.said(), "the service has it")
    for given in ("mine", "a b"):
        headers = proxy.get("/problem", X_Request_ID=given).headers
        assert (headers["X-Request-ID"] == "mine") is (given == "mine")
        assert len(headers["X-Request-ID"]) in (4, 32)
