"""Faults of the disk, of the file and of the machine's clock under load: no answer lies, nothing is lost.

`make test` injects one fault of each database, `make test-faults` all of them, as often as its table shows.
"""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest

from faulty import FaultyTrial, recovers, refused, says
from files import NAME, backup, locked, move_away, put_a_journal_there, remove
from installation import children, metric
from programs import wait_until
from replicas import Replicas
from trial import FULL, Fault, each, endure

BUSY = {"clients": 8, "pause": 0.01}
DOUBT = {201, 503}
DEAD = {201, 503, None}


@pytest.fixture
def trial(tmp_path, programs):
    return lambda **options: FaultyTrial(tmp_path, programs, **options)


def break_the_disk(run: FaultyTrial, fault: str) -> None:
    with run.faults.during(fault):
        if fault == "sync-db":  # the log takes everything meanwhile
            run.more(100)
        else:
            says(run.service, "disk")
            refused(run.service, "disk")
            for path in ("/stations/1", "/transactions", "/healthz"):
                assert run.service.get(path).status == 200
    recovers(run.service)
    assert not run.load.unknown


def break_the_disk_for_long(run: FaultyTrial) -> None:
    run.equipment.kill()
    wait_until(lambda: run.online() is None, "only requests write now")
    before = len(run.load.unknown)
    with run.faults.during("sync-wal"):
        wait_until(lambda: len(run.load.unknown) > before, "someone is told that the outcome is unknown")
    recovers(run.service)
    for key in run.load.unknown[before:]:
        post = partial(run.service.post, "/transactions", {"station_id": 1}, Idempotency_Key=key)
        assert post().json["id"] == post().json["id"]
    run.equipment.start()


def end_in_doubt(run: FaultyTrial, way: str) -> None:
    run.faults.begin("sync-wal")
    says(run.service, "disk")
    getattr(run.service, way)()
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
        run.refused()
    recovers(run.service)


def keep_verdicts(run: FaultyTrial) -> None:
    run.load.may_post.clear()
    wait_until(lambda: run.status("PENDING") == 0, "all are settled")
    run.equipment.send(signal.SIGSTOP)
    for _ in range(20):
        run.post()
    wait_until(lambda: run.status("EXPIRED") >= 20, "all are EXPIRED")
    with locked(run.folder):
        run.equipment.send(signal.SIGCONT)
        held = lambda: metric(run.service, "energy2go_held_jobs") >= 20  # noqa: E731
        wait_until(held, "the verdicts wait to be stored")
    recovers(run.service)
    wait_until(lambda: run.status("EXPIRED") == 0, "all have their verdicts")
    run.load.may_post.set()


def move_away_and_back(run: FaultyTrial, names: str) -> None:
    back = move_away(run.folder, names)
    says(run.service, "was removed or replaced")
    for _ in range(20):  # readers do not heal it
        run.service.get("/transactions")
    refused(run.service, "was removed or replaced")
    back()
    recovers(run.service)


def harm_a_side_file(run: FaultyTrial, harm) -> None:
    harm(run.folder)
    wait_until(lambda: "while the service runs" in run.service.said(), "it notices")
    run.service.crash()
    Path(f"{run.folder / NAME}-journal").unlink(missing_ok=True)
    run.service.start()


def step_the_clock(run: FaultyTrial) -> None:
    for step in (3600, -3600, 0, -time.time(), 86400, 0):
        run.faults.set_clock(step)
        run.more()
    assert run.load.accepted == sorted(run.load.accepted)
    assert not run.query('SELECT 1 FROM "transaction" WHERE updated < created')


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
    old = run.worker
    run.faults.set_clock(300 * 365 * 86_400)
    wait_until(lambda: old not in children(run.service.pid), "the worker has ended")
    run.faults.set_clock(0)
    assert run.told()[500] <= len(run.load.unknown)  # the outcome is unknown


LINK = {"DATABASE_URL": "link"}
ALONE = {"clients": 1, "pause": 0}
FAULTS = {
    "fdatasync of the log fails (EIO)": Fault(
        partial(break_the_disk, fault="sync-wal"), 10, DOUBT, load=BUSY
    ),
    "fdatasync of the file fails (EIO)": Fault(partial(break_the_disk, fault="sync-db"), 10, load=BUSY),
    "a write fails (ENOSPC)": Fault(partial(break_the_disk, fault="full"), 10, DOUBT, load=BUSY),
    "fdatasync of the log fails for 10 s": Fault(
        break_the_disk_for_long, answers=DOUBT, options={"VALIDATION_RETRY": "30"}, load=BUSY
    ),
    "service killed (SIGKILL) while commits are in doubt": Fault(
        partial(end_in_doubt, way="crash"), 10, DEAD, load=BUSY
    ),
    "service stopped (SIGTERM) while commits are in doubt": Fault(
        partial(end_in_doubt, way="stop"), 10, DEAD, load=BUSY
    ),
    "service killed, and fdatasync of the file has failed": Fault(
        crash_before_a_checkpoint, 1, DEAD, load={"clients": 8, "pause": 0}
    ),
    "another process holds the write lock": Fault(hold_the_lock, answers=DOUBT),
    "20 late verdicts come while another process holds the write lock": Fault(
        keep_verdicts,
        answers=DOUBT,
        options={"VALIDATION_TIMEOUT": "2", "VALIDATION_RETRY": "0.5"},
        load={"clients": 1},
    ),
    "database files moved away and back": Fault(partial(move_away_and_back, names=f"{NAME}*"), 10, DOUBT),
    "database file moved away and back": Fault(partial(move_away_and_back, names=NAME), answers=DOUBT),
    "-wal removed, the URL names a link, then kill -9": Fault(
        partial(harm_a_side_file, harm=lambda folder: (folder / f"{NAME}-wal").unlink()),
        answers=DEAD,
        options=LINK,
    ),
    "-shm removed, then kill -9": Fault(
        partial(harm_a_side_file, harm=lambda folder: (folder / f"{NAME}-shm").unlink()), answers=DEAD
    ),
    "a foreign -journal put there, then kill -9": Fault(
        partial(harm_a_side_file, harm=put_a_journal_there), answers=DEAD
    ),
    "clock of the machine steps, up to 1970": Fault(step_the_clock, load=ALONE),
    "clock of the machine is 400 days ahead for a moment, with RETENTION_DAYS=90": Fault(
        jump_ahead, 10, options={"RETENTION_DAYS": "90"}, load=ALONE
    ),
    "clock beyond 2262": Fault(jump_too_far, answers=DEAD | {500}, load={"clients": 1}),
}


@pytest.mark.parametrize("name", each(FAULTS, "fdatasync of the log fails (EIO)"))
def test_the_disk_the_file_and_the_clock(trial, table, name, tmp_path):
    options = dict(FAULTS[name].options)
    if options == LINK:
        (tmp_path / "link.db").symlink_to(tmp_path / NAME)
        options = {"DATABASE_URL": f"sqlite:///{tmp_path}/link.db"}
    endure(trial(**options), name, FAULTS[name], table)


@pytest.mark.fault
@pytest.mark.parametrize("way", ["removed", "replaced by a backup"])
def test_the_files_are_gone(trial, table, way):
    """What was accepted before is gone with them; nothing is accepted until a restart."""
    run = trial().start()
    count, lost = 3 if FULL else 1, 0
    for _ in range(count):
        copy = backup(run.folder)
        remove(run.folder)
        copy.unlink() if way == "removed" else copy.rename(run.folder / NAME)
        says(run.service, "was removed or replaced")
        before = len(run.load.accepted)
        run.refused()
        lost += len(run.load.accepted) - before
        run.service.stop()
        run.service.start()
        run.ready()
        run.station()
        run.more()
    run.load.stop()
    table.append((f"database files {way}, then a restart", count, len(run.load.accepted), lost, 0, 0))
    assert not lost
    found = {row[0] for row in run.query('SELECT id FROM "transaction"')}
    assert {key.replace("-", "") for key in run.load.accepted[-30:]} <= found


# PostgreSQL


@contextlib.contextmanager
def frozen(*pids: int):
    """These processes are stopped (SIGSTOP) until the block ends."""
    with contextlib.ExitStack() as thaw:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                thaw.callback(os.kill, pid, signal.SIGCONT)
        yield


def freeze_postgresql(run: Replicas) -> None:
    (service,) = run.services
    with frozen(run.postgres.pid, *run.postgres.children), ThreadPoolExecutor(60) as pool:
        answers = pool.map(service.get, ["/stations", "/stations/1", "/transactions"] * 16)
        health = pool.map(service.get, ["/readyz", "/healthz", "/metrics"] * 3)
        assert {answer.status for answer in answers} == {503}
        assert [answer.status for answer in health] == [503, 503, 200] * 3
        assert b"energy2go_pending_transactions" not in service.get("/metrics").body
        run.refused()
    wait_until(lambda: service.get("/readyz").status == 200, "all works again")


def cut_the_connections(run: Replicas) -> None:
    run.postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{run.database}'"
    )


def lock_a_row(run: Replicas) -> None:
    run.equipment.send(signal.SIGSTOP)
    key = run.services[0].post("/transactions", {"station_id": 1}).json["id"]
    row = f"SELECT status FROM \"transaction\" WHERE id = '{key}'"
    with psycopg.connect(run.postgres.url(run.database)) as other:
        other.execute(f"{row} FOR UPDATE")
        run.equipment.send(signal.SIGCONT)
        run.more(200)
        assert run.query(row) == [("PENDING",)]


def lock_the_table(run: Replicas) -> None:
    with psycopg.connect(run.postgres.url(run.database)) as other:
        other.execute('LOCK TABLE "transaction" IN EXCLUSIVE MODE')
        run.refused()


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
    "a session locks PostgreSQL's table": (1, 3, lock_the_table, DOUBT),
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
