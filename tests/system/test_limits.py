"""The machine's limits: whatever idle and slow clients do, the worker lives and others are answered."""

import contextlib
import json
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from idle import FOLLOW, KEPT, WAIT, Crowd, everybody, half_a_body
from installation import metric, resident
from programs import Broker, Equipment, Service, wait_until
from raw import BODY, POST, answer


@pytest.fixture(scope="module")
def broker(tmp_path_factory, programs_of_file):
    programs_of_file.append(Broker(tmp_path_factory.mktemp("broker")).start())
    return programs_of_file[-1]


@pytest.fixture
def limited(tmp_path, programs, broker):
    """A function that starts the service with so many descriptors and one station."""

    def start(descriptors: int, **options) -> Service:
        service = Service(tmp_path, broker, **options)
        service.command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *service.command]
        programs.append(service.start())
        wait_until(service.ready, "the service is ready")
        assert service.post("/stations", {"description": "Teste"}).status == 201
        return service

    return start


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
        assert service.get("/healthz").status == 200
        assert service.post("/stations", {"description": "x"}).status == 201
        assert service.get("/stations").status == 200
    assert service.children == [worker]
    assert "Traceback" not in service.said()


def waits(service: Service, count: int, gauge: str = "waiters") -> None:
    wait_until(lambda: metric(service, f"energy2go_{gauge}") == count, f"{count} {gauge}")


def assert_settled(data: bytes) -> None:
    """Check that this answer has waited for its verdict."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\nPreference-Applied: wait=20" in head
    assert json.loads(body)["status"] in ("COMPLETED", "ERROR")


def test_clients_that_do_nothing_lock_nobody_out(limited, many):
    """`test_faults_service.py` has each kind of client, under load."""
    service = limited(20_000)
    assert "room for" not in service.said()
    (worker,) = service.children
    (kept,) = many(service, 1, KEPT, b"200 ")
    (slow,) = many(service, 1, POST + b"Content-Length: %d\r\n\r\n" % len(BODY))
    with Crowd(service) as crowd:
        everybody(crowd)
        half_a_body(crowd)
        assert_answers(service, worker)
        kept.sendall(KEPT)
        assert answer(kept).startswith(b"HTTP/1.1 200 ")
        slow.sendall(BODY)
        assert answer(slow).startswith(b"HTTP/1.1 201 ")


def test_with_few_descriptors_it_says_that_fewer_can_wait(limited, many, tmp_path, programs):
    service = limited(1024)
    (count,) = map(int, re.findall(r"leaves room for WAITS=(\d+) only", service.said()))
    assert 100 < count < 1000
    (worker,) = service.children
    for some in (everybody, half_a_body):
        with Crowd(service) as crowd:
            some(crowd)
            assert_answers(service, worker)
    waiting = many(service, count, WAIT)
    waits(service, count)
    for connection in waiting[::2]:
        connection.shutdown(socket.SHUT_WR)  # like `nc -N`: it still gets its answer
    assert_answers(service, worker)
    programs.append(Equipment(tmp_path, service.broker).start())
    for connection in waiting:
        assert_settled(answer(connection))
    assert resident(worker) < 128


def test_with_hardly_any_descriptors_it_still_works(limited, many):
    service = limited(64)
    (worker,) = service.children
    assert "leaves room for WAITS=" in service.said()
    many(service, 300)
    assert_answers(service, worker)


def test_those_that_wait_hold_up_no_others_and_past_waits_nobody_waits(limited, many):
    service = limited(20_000, THREADS="2", WAITS="50", GUNICORN_CMD_ARGS="--keep-alive=2")
    (worker,) = service.children
    os.kill(worker, signal.SIGSTOP)
    burst = many(service, 600, KEPT)  # more at once than there are readers, and more than asyncio lets wait
    os.kill(worker, signal.SIGCONT)
    for connection in burst:
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        assert connection.recv(1) == b""  # closed after --keep-alive
    assert many(service, 1)[0].recv(1) == b""
    many(service, 50, WAIT)
    waits(service, 50)
    assert_answers(service, worker)
    more = service.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    again = service.get(f"/transactions/{more.json['id']}", Prefer="wait=20")
    assert (more.status, again.status) == (201, 200)
    for late in (more, again):
        assert (late.json["status"], late.headers["Retry-After"]) == ("PENDING", "1")
        assert "Preference-Applied" not in late.headers
    with ThreadPoolExecutor(20) as pool:
        bodies = [{"station_id": 1}] * 100
        answers = list(pool.map(lambda body: service.post("/transactions", body).status, bodies))
    assert answers == [201] * 100
    assert service.ready()
    assert "cannot be read" not in service.said()


def test_a_client_that_has_gone_gives_its_place_back_and_those_that_wait_end_with_the_service(limited, many):
    service = limited(20_000, WAITS="50")
    for asked, gauge in ((WAIT, "waiters"), (FOLLOW, "followers")):
        for data in (asked, asked.replace(b"/1.1", b"/1.0")):
            with Crowd(service) as crowd:
                crowd.open(60, data)
                waits(service, 50, gauge)
            waits(service, 0, gauge)
    assert metric(service, 'http_requests_total{method="POST",route="/transactions",status="499"}') == 100
    waiting = many(service, 50, WAIT)
    waits(service, 50)
    many(service, 50)
    assert service.stop() == 0
    for connection in waiting:
        assert answer(connection).startswith(b"HTTP/1.1 201 ")
