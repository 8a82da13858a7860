"""Faults of the disk, of the file and of the machine's clock under load: no answer lies, nothing is lost.

`make test` injects one fault of each database, `make test-faults` all of them, as often as its table shows.
"""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

from faulty import FaultyTrial, recovers, refused, says
from files import NAME, locked, move_away
from installation import metric
from programs import wait_until
from replicas import Replicas
from trial import FULL, Fault, each, endure

BUSY = {"clients": 8, "pause": 0.01}
DOUBT = {201, 503}
DEAD = {201, 503, None}


@pytest.fixture
def trial(tmp_path, programs):
    """A function that makes a trial; its URL names a link to the file."""
    (tmp_path / "link.db").symlink_to(tmp_path / NAME)
    link = {"DATABASE_URL": f"sqlite:///{tmp_path}/link.db"}
    return lambda **options: FaultyTrial(tmp_path, programs, **link | options)


def break_the_disk(run: FaultyTrial, fault: str) -> None:
    with run.faults.during(fault):
        says(run.service, "disk")
        refused(run.service, "disk")
        for path in ("/stations/1", "/transactions", "/healthz"):
            assert run.service.get(path).status == 200
    recovers(run.service)
    assert not run.load.unknown


def crash_in_doubt(run: FaultyTrial) -> None:
    run.faults.begin("sync-wal")
    says(run.service, "disk")
    run.service.crash()
    run.faults.end("sync-wal")
    run.service.start()


def crash_before_a_checkpoint(run: FaultyTrial) -> None:
    with run.faults.during("sync-db"):
        run.more(3000)  # more than a checkpoint's thousand pages
        run.service.crash()
    run.service.start()


def hold_the_lock(run: FaultyTrial) -> None:
    with locked(run.folder):
        says(run.service, "database is locked", "takes too long")
        run.load.refused_more(8)
    recovers(run.service)


def move_away_and_back(run: FaultyTrial) -> None:
    back = move_away(run.folder)
    says(run.service, "was removed or replaced")
    for _ in range(20):  # readers do not heal it
        run.service.get("/transactions")
    refused(run.service, "was removed or replaced")
    back()
    recovers(run.service)


def remove_a_side_file(run: FaultyTrial, end: str) -> None:
    (run.folder / f"{NAME}{end}").unlink()
    wait_until(lambda: "while the service runs" in run.service.said(), "it notices")
    run.service.crash()
    run.service.start()


def jump_ahead(run: FaultyTrial) -> None:
    run.load.may_post.clear()
    run.faults.set_clock(400 * 86400)
    run.post()
    run.faults.set_clock(0)
    run.post()  # what the ledger did while the clock was ahead is done
    if deleted := metric(run.service, "energy2go_deleted_total"):  # on a slow machine, retention ran then
        run.forget_deleted()
    run.load.may_post.set()
    run.more()
    says_ahead = lambda: "ahead of the clock" in run.service.said()  # noqa: E731
    wait_until(says_ahead, "the log says that the clock is behind")
    assert metric(run.service, "energy2go_deleted_total") == deleted


def jump_too_far(run: FaultyTrial) -> None:
    old = run.service.worker
    run.faults.set_clock(300 * 365 * 86_400)
    wait_until(lambda: old not in run.service.children, "the worker has ended")
    run.faults.set_clock(0)
    assert run.load.statuses[500] <= len(run.load.unknown)  # the outcome is unknown


ALONE = {"clients": 1, "pause": 0}
FAULTS = {
    "fdatasync of the log fails (EIO)": Fault(
        partial(break_the_disk, fault="sync-wal"), 10, DOUBT, load=BUSY
    ),
    "a write fails (ENOSPC)": Fault(partial(break_the_disk, fault="full"), 10, DOUBT, load=BUSY),
    "service killed (SIGKILL) while commits are in doubt": Fault(crash_in_doubt, 10, DEAD, load=BUSY),
    "service killed, and fdatasync of the file has failed": Fault(
        crash_before_a_checkpoint, 1, DEAD, load={"clients": 8, "pause": 0}
    ),
    "another process holds the write lock": Fault(hold_the_lock, answers=DOUBT),
    "database files moved away and back": Fault(move_away_and_back, 10, DOUBT),
    "-wal removed, then kill -9": Fault(partial(remove_a_side_file, end="-wal"), answers=DEAD),
    "-shm removed, then kill -9": Fault(partial(remove_a_side_file, end="-shm"), answers=DEAD),
    "clock of the machine is 400 days ahead for a moment, with RETENTION_DAYS=90": Fault(
        jump_ahead, 10, options={"RETENTION_DAYS": "90"}, load=ALONE
    ),
    "clock beyond 2262": Fault(jump_too_far, answers=DEAD | {500}, load={"clients": 1}),
}


@pytest.mark.parametrize("name", each(FAULTS, "fdatasync of the log fails (EIO)"))
def test_the_disk_the_file_and_the_clock(trial, table, name):
    endure(trial(**FAULTS[name].options), name, FAULTS[name], table)


# PostgreSQL


def freeze_postgresql(run: Replicas) -> None:
    (service,) = run.services
    with contextlib.ExitStack() as thaw:
        for pid in (run.postgres.pid, *run.postgres.children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                thaw.callback(os.kill, pid, signal.SIGCONT)
        pool = thaw.enter_context(ThreadPoolExecutor(60))
        answers = pool.map(service.get, ["/stations", "/stations/1", "/transactions"] * 16)
        health = pool.map(service.get, ["/readyz", "/healthz", "/metrics"] * 3)
        assert {answer.status for answer in answers} == {503}
        assert [answer.status for answer in health] == [503, 503, 200] * 3
        assert b"energy2go_pending_transactions" not in service.get("/metrics").body
        run.loads[0].refused_more(3)
    wait_until(lambda: service.get("/readyz").status == 200, "all works again")


def cut_the_connections(run: Replicas) -> None:
    found = f"FROM pg_stat_activity WHERE datname = '{run.database}'"
    run.postgres.execute(f"SELECT pg_terminate_backend(pid) {found}")


def lock_a_row(run: Replicas) -> None:
    run.equipment.send(signal.SIGSTOP)
    key = run.services[0].post("/transactions", {"station_id": 1}).json["id"]
    row = f"SELECT status FROM \"transaction\" WHERE id = '{key}'"
    with psycopg.connect(run.postgres.url(run.database)) as other:
        other.execute(f"{row} FOR UPDATE")
        run.equipment.send(signal.SIGCONT)
        run.more(200)
        assert run.query(row) == [("PENDING",)]


HOLDER = """SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND state LIKE 'idle in transaction%'"""


def freeze_the_lock_holder(run: Replicas) -> None:
    (worker,) = run.services[0].children

    def freeze() -> bool:
        os.kill(worker, signal.SIGSTOP)
        if run.query(HOLDER):
            return True
        os.kill(worker, signal.SIGCONT)
        return False

    wait_until(freeze, "it is frozen while it holds the lock")
    run.more(loads=run.loads[1:])
    os.kill(worker, signal.SIGCONT)


OF_POSTGRESQL = {
    "PostgreSQL frozen (SIGSTOP)": (1, 1, freeze_postgresql, DEAD),
    "PostgreSQL cuts all connections": (1, 200, cut_the_connections, DOUBT),
    "a session locks a PENDING row of PostgreSQL": (1, 1, lock_a_row, {201}),
    "a replica is frozen while it holds PostgreSQL's lock": (2, 3, freeze_the_lock_holder, DOUBT),
}


@pytest.mark.parametrize("name", each(OF_POSTGRESQL, "PostgreSQL cuts all connections"))
def test_postgresql(tmp_path, programs, postgres, table, name):
    replicas, times, inject, allowed = OF_POSTGRESQL[name]
    run = Replicas(tmp_path, programs, postgres, replicas).start()
    run.load(clients=4, pause=0)
    for _ in range(times if FULL else min(times, 3)):
        run.more(3)
        inject(run)
    run.more()
    began = time.monotonic()
    told = run.finish()
    accepted = sum(len(load.accepted) for load in run.loads)
    table.append((name, times, accepted, 0, 0, time.monotonic() - began))
    assert set(told) <= allowed
