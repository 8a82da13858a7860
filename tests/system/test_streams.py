"""Clients that follow events of the real service, over restarts, reloads, replicas and full sockets."""

import os
import signal
import socket
import sqlite3
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from events import to_text
from following import Follower, assert_complete
from installation import Installation, children, every_transaction, metric, resident
from load import Load
from models import FIRST
from programs import HttpServer, Nginx, Service, wait_until
from raw import connect
from replicas import Replicas

START = to_text(FIRST)
MANY = 10_000
REQUEST = b"GET /events?after=%s HTTP/1.1\r\nHost: x\r\n\r\n" % START.encode()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs of this file, for those tests that end none of them."""
    return Installation(tmp_path_factory.mktemp("streams"), programs_of_file, THREADS="2").start()


@pytest.fixture
def follow():
    """A function that starts a client: `follow(service, START)`."""
    started = []

    def start(server: HttpServer, *arguments, **options) -> Follower:
        started.append(Follower(server, *arguments, **options))
        wait_until(lambda: started[-1].streams, "its stream begins")
        return started[-1]

    yield start
    for follower in started:
        follower.stop()


def followers(service: Service) -> int:
    """How many clients follow."""
    return int(metric(service, "energy2go_followers"))


def settled(service: HttpServer, query: str = "") -> dict[str, str]:
    """The status of each transaction that matches, once each has its verdict."""
    pending = f"/transactions?status=PENDING{query}"
    wait_until(lambda: not service.get(pending).json["items"], "all is settled")
    return {item["id"]: item["status"] for item in every_transaction(service, query)}


def told(follower: Follower, wanted: dict[str, str]) -> None:
    """Wait until a client knows all of this, and check that it knows it without gaps and repetitions."""
    wait_until(lambda: wanted.items() <= follower.last().items(), "it was told everything")
    assert_complete(follower, wanted)


def post(service: HttpServer, count: int) -> list[str]:
    """So many new transactions, each sent again until it is accepted; their ids."""
    keys = [str(uuid4()) for _ in range(count)]
    for key in keys:
        send = partial(service.post, "/transactions", {"station_id": 1}, Idempotency_Key=key)
        wait_until(lambda again=send: again().status in (200, 201), "it is accepted")
    return [service.post("/transactions", {"station_id": 1}, Idempotency_Key=key).json["id"] for key in keys]


# What a client is told


def test_clients_are_told_everything_and_block_no_others(shared, follow):
    service, station = shared.service, shared.station()
    clients = [follow(service) for _ in range(50)]
    load = Load(service, clients=4, total=300, station=station).start()
    load.join()
    wanted = settled(service, f"&station_id={station}")
    assert len(wanted) == 300
    for client in clients:
        told(client, wanted)
        assert client.streams == 1
    assert followers(service) >= 50
    assert resident(shared.worker) < 128
    assert "Traceback" not in service.said()


def test_a_client_learns_when_the_broker_goes_and_comes_back(running, follow, broker):
    service = running()
    follower = follow(service)
    wait_until(
        lambda: follower.readiness == service.get("/readyz").json, "it knows how ready the service is"
    )
    broker.stop()
    wait_until(lambda: follower.readiness["broker"] != "ok", "it learns that the broker has gone")
    assert follower.readiness["status"] == 503
    broker.start()
    wait_until(lambda: follower.readiness == service.get("/readyz").json, "it learns that all is well")
    assert follower.streams == 1


def worker(service: Service) -> int:
    return wait_until(lambda: children(service.pid), "there is a worker")[-1]


def reload(service: Service) -> None:
    old = worker(service)
    service.send(signal.SIGHUP)
    wait_until(lambda: old not in children(service.pid), "the old worker has gone")


def kill_the_worker(service: Service) -> None:
    os.kill(worker(service), signal.SIGKILL)


def kill_everything(service: Service) -> None:
    service.crash()
    service.start()


@pytest.mark.parametrize("how", [reload, kill_the_worker, kill_everything])
def test_a_client_misses_nothing_over_a_restart(running, follow, how):
    service = running(VALIDATION_RETRY="1")
    clients = [follow(service) for _ in range(5)]  # none of them has been told anything yet
    how(service)
    load = Load(service, clients=4, pause=0.01, keep_alive=False).start()
    for again in (True, False):
        goal = len(load.accepted) + 50
        wait_until(lambda g=goal: len(load.accepted) >= g, "more are accepted")
        if again:
            how(service)
    load.stop()
    wait_until(service.ready, "it is ready")
    wanted = settled(service)
    assert set(load.accepted) <= wanted.keys()
    for client in clients:
        told(client, wanted)
        assert client.streams >= 2
        assert client.began == "begin"


def test_a_client_is_told_what_another_process_stores(tmp_path, programs, postgres, follow):
    run = Replicas(tmp_path, programs, postgres, 2).start()
    first, second = run.services
    here, there = follow(first), follow(second)
    run.load()
    run.more(100)
    # Each replica stores only some of it, and each client knows all of it.
    here.server, there.server = second, first
    first.crash()
    run.more(50, run.loads[1:])
    first.start()
    for load in run.loads:
        load.stop()
    run.settled()
    wanted = settled(second)
    for client in (here, there):
        told(client, wanted)


def test_a_client_is_told_the_rest_when_postgresql_is_back(tmp_path, programs, postgres, follow):
    run = Replicas(tmp_path, programs, postgres, 1).start()
    (service,) = run.services
    client = follow(service)
    run.load()
    run.more()
    try:
        postgres.stop(signal.SIGQUIT)
        wait_until(lambda: service.get("/events").status == 503, "nobody can begin to follow")
    finally:
        postgres.start()
    run.more()
    for load in run.loads:
        load.stop()
    run.settled()
    told(client, settled(service))
    assert client.streams == 1


def test_behind_the_proxy_a_client_is_told_at_once_and_goes_on_at_another_replica(
    tmp_path, programs, postgres, follow
):
    run = Replicas(tmp_path, programs, postgres, 2).start()
    programs.append(Nginx(run.services))
    proxy = programs[-1].start()
    clients = [follow(proxy) for _ in range(6)]
    for service in run.services:
        (key,) = post(proxy, 1)
        for client in clients:
            wait_until(lambda c=client, k=key: c.last().get(k) in ("COMPLETED", "ERROR"), "it is told")
        service.crash()
        post(proxy, 20)
        service.start()
        wait_until(service.ready, "it is ready")
    proxy.send(signal.SIGHUP)
    post(proxy, 20)
    run.settled()
    for client in clients:
        told(client, settled(proxy))
        assert client.streams >= 2


# Places


def test_past_waits_it_answers_503_and_later_again_200(running, follow):
    service = running(WAITS="3")
    clients = [follow(service, again=False) for _ in range(3)]
    answer = service.get("/events")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert "follow" in answer.json["detail"]
    assert service.post("/transactions", {"station_id": 1}, Prefer="wait=20").headers["Retry-After"] == "1"
    for client in clients:
        client.stop()
    post(service, 1)  # they leave with the next event
    wait_until(lambda: followers(service) == 0, "their places are free")
    follow(service)


def test_head_gets_a_head_and_leaves(shared):
    service = shared.service
    wait_until(lambda: followers(service) == 0, "those of earlier tests have gone")
    for _ in range(3):
        with connect(service.port) as client:
            client.sendall(
                b"HEAD /events HTTP/1.1\r\nHost: x\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            heads = b""
            while heads.count(b"\r\n\r\n") < 2:
                heads += client.recv(65536)
        assert heads.count(b"HTTP/1.1 200 ") == 2
        assert b"\r\nContent-Type: text/event-stream\r\n" in heads
    assert followers(service) == 0


# Clients that do not read


def fill(service: Service, folder: Path) -> None:
    """Store more events than fit between a client and the service."""
    rows = "WITH RECURSIVE row(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM row WHERE number < ?)"
    columns = "id, station_id, status, created, updated, attempts"
    with closing(sqlite3.connect(folder / "energy2go.db", timeout=10)) as database, database:
        database.execute(
            f'{rows} INSERT OR IGNORE INTO "transaction" ({columns}) '
            "SELECT printf('%032x', number), 1, 'EXPIRED', number, number, 1 FROM row",
            (MANY,),
        )


def do_not_read(ends: ExitStack, service: Service, count: int) -> list[socket.socket]:
    """So many clients that ask for all events and read none."""
    clients = []
    for _ in range(count):
        client = ends.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(("127.0.0.1", service.port))
        client.sendall(REQUEST)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        clients.append(client)
    return clients


def test_clients_that_do_not_read_are_cut_off_and_block_no_others(shared, follow):
    service = shared.service
    fill(service, shared.folder)
    wait_until(lambda: followers(service) == 0, "those of earlier tests have gone")
    other = follow(service)
    with ExitStack() as ends:
        do_not_read(ends, service, 20)
        wait_until(lambda: followers(service) == 21, "all follow")
        for key in post(service, 5):
            wait_until(lambda k=key: other.last().get(k) in ("COMPLETED", "ERROR"), "it is told")
        wait_until(lambda: followers(service) == 1, "the others are cut off")
    assert other.streams == 1
    assert "Traceback" not in service.said()


def test_a_client_that_comes_late_is_told_everything_in_order(shared, follow):
    fill(shared.service, shared.folder)
    client = follow(shared.service, START)
    wait_until(lambda: len(client.told) >= MANY, "it was told everything")
    ids = [int(told["id"].replace("-", ""), 16) for _, told in client.told]
    assert ids[:MANY] == list(range(1, MANY + 1))


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_streams_end_as_http_says(running, follow, number):
    service = running()
    clients = [follow(service, again=False) for _ in range(50)]
    old = worker(service)
    service.send(number)
    wait_until(lambda: old not in children(service.pid), "the worker has ended")
    wait_until(lambda: not any(client.running for client in clients), "all streams have ended")
    assert [(client.ended, client.broken) for client in clients] == [(1, 0)] * 50
    assert "Traceback" not in service.said()
    if number == signal.SIGHUP:
        wait_until(service.ready, "it is ready again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_clients_that_do_not_read_do_not_hold_up_the_end(running, tmp_path, number):
    service = running()
    fill(service, tmp_path)
    old = worker(service)
    with ExitStack() as ends:
        do_not_read(ends, service, 20)
        wait_until(lambda: followers(service) == 20, "all follow")
        service.send(number)
        wait_until(lambda: old not in children(service.pid), "the worker has ended")
    assert "Traceback" not in service.said()
