"""The machine's limits: whatever idle and slow clients do, the worker lives and others are answered."""

import contextlib
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from idle import FOLLOW, KEPT, WAIT, Crowd, everybody, half_a_body
from installation import children, resident
from programs import Broker, Equipment, Service, wait_until
from raw import answer, talk


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A function that returns the service with so many descriptors and one station; it starts each once."""
    started, services = [], {}

    def start(descriptors: int) -> Service:
        if descriptors not in services:
            folder = tmp_path_factory.mktemp("limits")
            broker = Broker(folder).start()
            service = Service(folder, broker)
            service.command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *service.command]
            started.extend([broker, service.start()])
            wait_until(service.ready, "the service is ready")
            assert service.post("/stations", {"description": "Teste"}).status == 201
            services[descriptors] = service
        return services[descriptors]

    yield start
    for program in reversed(started):
        program.close()


@pytest.fixture
def many(programs):
    """A function that opens many connections to a service, which stay open until the test ends."""
    with contextlib.ExitStack() as ends:

        def open_many(service: Service, *arguments) -> list:
            return ends.enter_context(Crowd(service)).open(*arguments)

        yield open_many


def assert_answers(service: Service, worker: int) -> None:
    """Check that others are answered, and that the worker is the same one."""
    for _ in range(3):
        assert service.request("GET", "/healthz").status == 200
        assert service.request("POST", "/stations", {"description": "x"}).status == 201
        assert service.request("GET", "/stations").status == 200
    assert children(service.pid) == [worker]
    assert "Traceback" not in service.said()


@pytest.mark.parametrize("descriptors", [1024, 20_000])
@pytest.mark.parametrize("crowd", [everybody, half_a_body])
def test_clients_that_do_nothing_lock_nobody_out(limited, descriptors, crowd):
    """`test_faults_service.py` has each kind of client, under load."""
    service = limited(descriptors)
    (worker,) = children(service.pid)
    with Crowd(service) as opened:
        crowd(opened)
        assert_answers(service, worker)


def test_a_connection_that_stays_open_is_still_good_while_many_do_nothing(limited, many):
    service = limited(20_000)
    (kept,) = many(service, 1, KEPT, b"200 ")
    with Crowd(service) as opened:
        everybody(opened)
        kept.sendall(KEPT)
        assert answer(kept).startswith(b"HTTP/1.1 200 ")


def test_with_few_descriptors_it_says_that_fewer_can_wait(limited, many, tmp_path, programs):
    assert "room for" not in limited(20_000).said()
    service = limited(1024)
    (waits,) = re.findall(r"leaves room for WAITS=(\d+) only", service.said())
    assert 100 < int(waits) < 1000
    (worker,) = children(service.pid)
    waiting = many(service, int(waits), WAIT)
    wait_until(lambda: waiters(service) == int(waits), "all wait")
    assert_past_waits(service)
    assert_answers(service, worker)
    programs.append(Equipment(tmp_path, service.broker).start())
    for connection in waiting:
        connection.settimeout(60)
        head, _, body = answer(connection).partition(b"\r\n\r\n")
        assert b"\r\nPreference-Applied: wait=20" in head
        assert json.loads(body)["status"] in ("COMPLETED", "ERROR")


def test_with_hardly_any_descriptors_it_still_works(limited, many):
    service = limited(64)
    (worker,) = children(service.pid)
    assert "leaves room for WAITS=" in service.said()
    many(service, 300)
    assert_answers(service, worker)


def waiters(service: Service) -> int:
    """How many requests wait for a verdict."""
    return counted(service, "energy2go_waiters")


def counted(service: Service, pattern: str) -> int:
    """The value of the metric whose name and labels match."""
    return int(float(re.search(rf"^{pattern} (\S+)", service.get("/metrics").body.decode(), re.M)[1]))


def assert_past_waits(service: Service) -> None:
    """Check that one more request than may wait is answered at once, and stored."""
    more = service.request("POST", "/transactions", {"station_id": 1}, Prefer="wait=20")
    assert (more.status, more.json["status"], more.headers["Retry-After"]) == (201, "PENDING", "1")
    assert "Preference-Applied" not in more.headers
    path = f"/transactions/{more.json['id']}"
    again = service.request("GET", path, Prefer="wait=20")
    assert (again.status, again.json["status"], again.headers["Retry-After"]) == (200, "PENDING", "1")
    assert "Preference-Applied" not in again.headers


# Crowds


def test_50_that_wait_hold_neither_a_reader_nor_a_connection_to_the_database(service, many):
    running = service(THREADS="2", WAITS="50")
    running.post("/stations", {"description": "Teste"})
    (worker,) = children(running.pid)
    many(running, 50, WAIT)
    wait_until(lambda: waiters(running) == 50, "all wait")
    assert_answers(running, worker)
    assert_past_waits(running)
    with ThreadPoolExecutor(20) as pool:  # more at once than there are readers
        bodies = [{"station_id": 1}] * 100
        answers = list(pool.map(lambda body: running.post("/transactions", body).status, bodies))
    assert answers == [201] * 100


def test_a_client_that_has_gone_gives_its_place_back(service, many):
    running = service(WAITS="50")
    running.post("/stations", {"description": "Teste"})
    for asked, gauge in (
        (WAIT, "waiters"),
        (FOLLOW, "followers"),
        (WAIT.replace(b"/1.1", b"/1.0"), "waiters"),
    ):
        with Crowd(running) as crowd:
            crowd.open(60, asked)
            wait_until(lambda gauge=gauge: counted(running, f"energy2go_{gauge}") == 50, "no place is free")
        wait_until(lambda gauge=gauge: counted(running, f"energy2go_{gauge}") == 0, "all are free")
    gone = r'http_requests_total{method="POST",route="/transactions",status="499"}'
    assert counted(running, re.escape(gone)) == 100


def test_1000_that_wait_get_their_verdicts_in_128_mb(service, equipment, many):
    equipment(VALIDATOR_DELAY_MS="3000")
    running = service()
    running.post("/stations", {"description": "Teste"})
    wait_until(lambda: "online" in running.get("/readyz").json["equipment"].values(), "it is online")
    (worker,) = children(running.pid)
    for version in (b"HTTP/1.0", b"HTTP/1.1"):  # a client that half-closes
        head, _, body = talk(running.port, WAIT.replace(b"HTTP/1.1", version)).partition(b"\r\n\r\n")
        assert head.startswith(version + b" 201 Created\r\n")
        assert json.loads(body)["status"] in ("COMPLETED", "ERROR")
    waiting = many(running, 1000, WAIT)
    assert_answers(running, worker)
    most = 0.0
    for connection in waiting:
        connection.settimeout(60)
        head, _, body = answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 ")
        assert b"\r\nPreference-Applied: wait=20" in head
        assert json.loads(body)["status"] in ("COMPLETED", "ERROR")
        most = max(most, resident(worker))
    assert most < 128
    assert "Traceback" not in running.said()


def test_more_requests_at_once_than_readers_wait_for_one(service, many):
    running = service(THREADS="2")
    opened = many(running, 600, KEPT)
    for connection in opened:
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
    assert running.ready()
    assert "cannot be read" not in running.said()


def test_what_waits_ends_when_the_service_stops(service, many):
    running = service()
    running.post("/stations", {"description": "Teste"})
    waiting = many(running, 50, WAIT)
    wait_until(lambda: waiters(running) == 50, "all wait")
    many(running, 50)
    assert running.stop() == 0
    for connection in waiting:
        assert answer(connection).startswith(b"HTTP/1.1 201 ")
