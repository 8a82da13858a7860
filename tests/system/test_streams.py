"""Clients that follow events of the real service, over restarts, reloads, replicas and full sockets."""

import os
import signal
import socket
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from events import to_text
from following import Follower, assert_complete
from installation import Installation, every_transaction, metric
from load import Load
from models import FIRST
from programs import HttpServer, Nginx, Service, wait_until
from raw import talk
from replicas import Replicas

START = to_text(FIRST)
MANY = 10_000
REQUEST = b"GET /events?after=%s HTTP/1.1\r\nHost: x\r\n\r\n" % START.encode()


def fill(folder: Path) -> None:
    """Store more events than fit between a client and the service, before anyone follows."""
    rows = "WITH RECURSIVE row(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM row WHERE number < ?)"
    columns = "id, station_id, status, created, updated, attempts"
    with closing(sqlite3.connect(folder / "energy2go.db", timeout=10)) as database, database:
        database.execute(
            f'{rows} INSERT INTO "transaction" ({columns}) '
            "SELECT printf('%032x', number), 1, 'EXPIRED', number, number, 1 FROM row",
            (MANY,),
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory, programs_of_file):
    """The three programs of this file with many events, for those tests that end none of them."""
    installed = Installation(tmp_path_factory.mktemp("streams"), programs_of_file, THREADS="2").start()
    fill(installed.folder)
    return installed


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


def followers(service: Service, count: int) -> None:
    wait_until(lambda: metric(service, "energy2go_followers") == count, f"{count} clients follow")


def settled(service: HttpServer) -> dict[str, str]:
    """The status of each transaction, once each has its verdict."""
    wait_until(lambda: not service.get("/transactions?status=PENDING").json["items"], "all is settled")
    return {item["id"]: item["status"] for item in every_transaction(service)}


def told(follower: Follower, wanted: dict[str, str]) -> None:
    """Wait until a client knows all of this, and check that it knows it without gaps and repetitions."""
    wait_until(lambda: wanted.items() <= follower.last().items(), "it was told everything")
    assert_complete(follower, wanted)


# What a client is told


def kill_the_worker(service: Service) -> None:
    os.kill(service.worker, signal.SIGKILL)


def kill_everything(service: Service) -> None:
    service.crash()
    service.start()


def test_a_client_misses_nothing_over_a_restart(running, follow):
    service = running(VALIDATION_RETRY="1")
    clients = [follow(service) for _ in range(20)]
    service.reload()  # none of them has been told anything yet
    load = Load(service, clients=4, pause=0.01, keep_alive=False).start()
    for how in (Service.reload, kill_the_worker, kill_everything):
        load.more(50)
        how(service)
    wait_until(service.ready, "it is ready")
    load.stop()
    wanted = settled(service)
    assert set(load.accepted) <= wanted.keys()
    for client in clients:
        told(client, wanted)
        assert client.streams >= 4
        assert client.began == "begin"


def test_clients_of_replicas_and_of_the_proxy_are_told_everything(tmp_path, programs, postgres, follow):
    run = Replicas(tmp_path, programs, postgres, 2).start()
    first, second = run.services
    programs.append(Nginx(run.services))
    proxy = programs[-1].start()
    clients = [follow(server) for server in (first, second, proxy, proxy)]
    run.load()
    run.more(50)
    # Each replica stores only some of it, and each client knows all of it. Those of the first go elsewhere.
    clients[0].server = second
    first.crash()
    run.more(50, run.loads[1:])
    first.start()
    proxy.send(signal.SIGHUP)
    run.more(30, run.loads[1:])
    try:
        postgres.stop(signal.SIGQUIT)
        wait_until(lambda: second.get("/events").status == 503, "nobody can begin to follow")
    finally:
        postgres.start()
    run.more(30, run.loads[1:])
    for load in run.loads:
        load.stop()
    run.settled()
    wanted = settled(second)
    for client in clients:
        told(client, wanted)


# Clients that do not read


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
    shared.transact()  # a client of an earlier test leaves with the next event
    followers(service, 0)
    other = follow(service)
    with ExitStack() as ends:
        do_not_read(ends, service, 20)
        followers(service, 21)
        for _ in range(5):
            key = shared.transact().json["id"]
            wait_until(lambda k=key: other.last().get(k) in ("COMPLETED", "ERROR"), "it is told")
        followers(service, 1)  # the others are cut off
    assert other.streams == 1
    assert "Traceback" not in service.said()


def test_a_stream_ends_if_its_client_closes_its_side_at_once(shared):
    talk(shared.service.port, REQUEST)
    followers(shared.service, 0)


def test_a_client_that_comes_late_is_told_everything_in_order(shared, follow):
    client = follow(shared.service, START)
    wait_until(lambda: len(client.told) >= MANY, "it was told everything")
    ids = [int(told["id"].replace("-", ""), 16) for _, told in client.told]
    assert ids[:MANY] == list(range(1, MANY + 1))


# The end


def test_streams_end_as_http_says_and_clients_that_do_not_read_do_not_hold_up_the_end(
    running, follow, tmp_path
):
    service = running()
    fill(tmp_path)
    for number in (signal.SIGHUP, signal.SIGTERM):
        wait_until(service.ready, "it is ready")
        clients = [follow(service, again=False) for _ in range(20)]
        old = service.worker
        with ExitStack() as ends:
            do_not_read(ends, service, 20)
            followers(service, 40)
            service.send(number)
            wait_until(lambda gone=old: gone not in service.children, "the worker has ended")
        wait_until(lambda now=clients: not any(client.running for client in now), "all streams have ended")
        assert [(client.ended, client.broken) for client in clients] == [(1, 0)] * 20
    assert "Traceback" not in service.said()
