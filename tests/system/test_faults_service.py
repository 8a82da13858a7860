"""Faults of the service, its clock and its database under load: nothing is lost, and nothing stays PENDING.

`make test` injects each fault once or twice, `make test-faults` as often as its table shows.
"""

import ast
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest

from idle import CROWDS, WAIT, Crowd
from kit.clock import SECOND, Clock
from load import Load
from pair import Pair
from programs import ROOT, wait_until
from raw import BODY, POST, answer, reset
from trial import FULL, Trial, children, kill, resident

SOME = 10 if FULL else 2


def test_the_service_is_killed_at_random_moments(trial, table):
    run = trial().start()
    moments = random.Random(20)
    for _ in range(20 if FULL else 2):
        run.note()
        run.more(moments.randrange(1, 60))
        workers = children(run.service.pid)
        run.service.kill()
        kill(workers)
        assert run.query("PRAGMA integrity_check") == [("ok",)]
        run.service.start()
        run.more(1)
    run.finish("service killed (SIGKILL, master and worker)", table)
    assert set(run.told()) == {201}


def test_the_worker_is_killed(trial, table):
    run = trial().start()
    for _ in range(SOME):
        run.note()
        kill([run.worker])
        run.more()
    run.finish("worker killed (SIGKILL)", table)
    assert set(run.told()) == {201}


def test_the_service_reloads(trial, table):
    run = trial().start(keep_alive=False)
    for _ in range(SOME):
        run.note()
        old = run.worker
        run.service.send(signal.SIGHUP)
        wait_until(lambda: old not in children(run.service.pid), "the old worker has gone")  # noqa: B023
        run.more()
    run.finish("service reloaded (SIGHUP)", table)
    assert set(run.told()) == {201}
    assert not run.load.broken


def test_the_service_is_stopped(trial, table):
    run = trial().start(keep_alive=False)
    for _ in range(SOME):
        run.note()
        assert run.service.stop() == 0
        stored = {key for (key,) in run.query('SELECT idempotency_key FROM "transaction"')}
        assert not stored & set(run.load.broken), "a request was stored and not answered"
        run.service.start()
        run.more()
    run.finish("service stopped (SIGTERM)", table)
    assert set(run.told()) == {201}


@pytest.mark.parametrize(
    "way",
    ["an error in the ledger", "an exit of the ledger", "an error in a callback", "an exit of the listener"],
)
def test_a_thread_dies(trial, table, way):
    run = trial(PYTHONPATH=f"{ROOT}:{ROOT}/tests/support")
    run.service.command[-1] = "dying:app"
    run.start()
    for _ in range(3 if FULL else 1):
        run.note()
        worker = run.worker
        # The process may die before it answers.
        with contextlib.suppress(OSError):
            run.service.post(f"/die/{quote(way)}", {})
        wait_until(lambda: not Path(f"/proc/{worker}/exe").exists(), "the process has ended", 5)  # noqa: B023
        run.more()
        run.ready()
    run.finish(f"a thread dies: {way}", table)
    assert set(run.told()) <= {201, 503}
    assert "the process ends" in run.service.said()


# The machine's limits


@pytest.mark.parametrize("descriptors", [1024, 20_000])
@pytest.mark.parametrize("crowd", CROWDS)
def test_many_clients_do_nothing(trial, table, descriptors, crowd):
    run = trial()
    run.service.command[:0] = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    run.start()
    worker = run.worker
    for _ in range(3 if FULL else 1):
        run.note()
        with Crowd(run.service) as opened:
            crowd(opened)
            run.more(seconds=5)
    run.finish(f"{crowd.__doc__}; {descriptors} descriptors", table)
    assert set(run.told()) == {201}
    assert run.worker == worker, "the worker died"


def test_clients_reset_their_connections_while_they_send(trial, table):
    run = trial().start()
    whole = POST + b"Content-Length: 20\r\n\r\n" + BODY
    for _ in range(SOME):
        run.note()
        for length in range(0, len(whole), 5):
            reset(run.service.port, whole[:length])
        run.more()
    run.finish("clients reset their connections while they send", table)
    assert set(run.told()) == {201}
    assert run.query("SELECT count(*) FROM station") == [(1,)]
    assert "Traceback" not in run.service.said()


def test_more_wait_than_may(trial, table):
    run = trial(WAITS="50")
    run.equipment.environment["VALIDATOR_DELAY_MS"] = "1000"
    run.start()
    for _ in range(3 if FULL else 1):
        run.note()
        with Crowd(run.service) as opened:
            for connection in opened.open(500, WAIT):
                assert answer(connection).startswith(b"HTTP/1.1 201 ")
        run.more()
    run.finish("500 requests want to wait, 50 may", table)
    assert set(run.told()) == {201}


def test_clients_that_wait_leave(trial, table):
    run = trial(WAITS="50")
    run.equipment.environment["VALIDATOR_DELAY_MS"] = "3000"
    run.start()

    def may_wait() -> bool:
        answer = run.service.post("/transactions", {"station_id": 1}, Prefer="wait=1")
        return "Preference-Applied" in answer.headers

    for _ in range(3 if FULL else 1):
        run.note()
        with Crowd(run.service) as opened:
            opened.open(60, WAIT)
            wait_until(lambda: not may_wait(), "no place is free")
        wait_until(may_wait, "a place is free", 2)
        run.more()
    run.finish("60 clients want to wait, 50 may, and leave", table)
    assert set(run.told()) == {201}


# The clock


class SteppingClock(Clock):
    """The machine's clocks, with a wall clock that is `step` seconds off. A new one starts with that."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step
        self._offset += step * 10**9

    def wall(self) -> int:
        return super().wall() + self.step * SECOND


def test_the_wall_clock_steps_back_and_forth(tmp_path, programs, table, broker, equipment):
    steps = [3600, -3600, 7200, -7200, 0] * (2 if FULL else 1)
    clock, began = SteppingClock(0), time.monotonic()
    pair = Pair(tmp_path, broker.port, clock)
    keys, asked = [], 0
    for step in steps:
        pair.ready()
        keys += [pair.create() for _ in range(20)]
        # While the ledger runs, a step of the wall clock changes nothing; the retries go on.
        clock.step = step
        before = pair.asked
        wait_until(lambda: pair.asked >= before + 20, "what is open is asked again")  # noqa: B023
        asked += pair.asked
        # After a restart, the ledger starts with the new time.
        pair.stop()
        clock = SteppingClock(step)
        pair = Pair(tmp_path, broker.port, clock)
    seconds = time.monotonic() - began
    assert asked <= len(keys) * (len(steps) + seconds), "a stampede"
    equipment()
    ended = time.monotonic()
    for key in keys:
        wait_until(lambda: pair.status(key) in ("COMPLETED", "ERROR"), "settled", 7)  # noqa: B023
    table.append(("wall clock steps an hour", len(steps), len(keys), 0, 0, time.monotonic() - ended))
    pair.stop()


# The database


QUERY = """
import sqlite3, sys
print(repr(sqlite3.connect(sys.argv[1], timeout=10).execute(sys.argv[2]).fetchall()))
"""


class SmallDisk(Trial):
    """A trial whose database is on a small disk: a mount in a namespace of the service."""

    def __init__(self, folder: Path, programs: list):
        super().__init__(folder, programs)
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.user = [] if os.geteuid() == 0 else ["--user"]  # without root, this needs a user namespace
        mount = f'mount -t tmpfs -o size=16m tmpfs "{self.disk}" && exec "$@"'
        unshare = ["unshare", "--mount", *(["--map-root-user"] if self.user else [])]
        self.service.command = [*unshare, "sh", "-c", mount, "sh", *self.service.command]
        self.service.environment["DATABASE_URL"] = f"sqlite:///{self.disk}/energy2go.db"

    def query(self, sql: str) -> list[tuple]:
        # SQLite resolves /proc/PID/root to /, so run the query inside the namespace.
        enter = ["nsenter", f"--target={self.service.pid}", "--mount", *self.user]
        command = [*enter, sys.executable, "-c", QUERY, str(self.disk / "energy2go.db"), sql]
        return ast.literal_eval(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def fill(self) -> Path:
        """Fill the disk; returns the file that fills it."""
        filler = Path(f"/proc/{self.service.pid}/root{self.disk}/filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        return filler


def test_the_disk_is_full(tmp_path, programs, table):
    run = SmallDisk(tmp_path, programs).start()
    for _ in range(3 if FULL else 1):
        run.note()
        filler = run.fill()
        before = run.told()[503]
        wait_until(lambda: run.told()[503] > before + 20, "requests are refused")  # noqa: B023
        answer = run.service.post("/transactions", {"station_id": 1})
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert answer.headers["Content-Type"] == "application/problem+json"
        for path in ("/stations/1", "/transactions", f"/transactions/{run.load.accepted[0]}", "/healthz"):
            assert run.service.get(path).status == 200
        filler.unlink()
        run.more()
    run.finish("disk full", table)
    assert set(run.told()) == {201, 503}


def test_a_backlog_of_100000_is_drained_while_http_stays_responsive(trial, table):
    run = trial()
    count = 100_000 if FULL else 20_000
    run.equipment.environment["VALIDATOR_DELAY_MS"] = "200"
    run.service.start()
    run.service.post("/stations", {"description": "Teste"})
    run.service.stop()
    now = int(time.time() * 1e6)
    with contextlib.closing(sqlite3.connect(run.folder / "energy2go.db")) as database, database:
        rows = ((uuid.uuid4().hex, now + number, now, now + number) for number in range(count))
        database.executemany(
            'INSERT INTO "transaction" (id, station_id, status, created, updated, attempts, retry_at) '
            "VALUES (?, 1, 'PENDING', ?, ?, 0, ?)",
            rows,
        )
    run.broker.start()
    run.equipment.start()
    run.service.start()
    run.ready()
    run.load = Load(run.service, clients=2, pause=0.05).start()
    run.note()
    wait_until(lambda: run.status("PENDING") < 0.8 * count, "a part of it is settled", 600)
    early = resident(run.worker)
    assert run.service.get("/transactions?status=PENDING", timeout=5).status == 200
    wait_until(lambda: run.status("PENDING") < 1000, "the rest is settled", 600)
    assert resident(run.worker) - early < 10, "the service's memory grows"
    run.finish(f"{count} PENDING at start, equipment slow", table)
    assert set(run.told()) == {201}
