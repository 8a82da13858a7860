"""Faults of the disk, of the file and of the machine's clock under load: no answer lies, nothing is lost.

`make test` injects each fault once or twice, `make test-faults` as often as its table shows.
"""

import contextlib
import itertools
import os
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from faulty import FaultyTrial, recovers, refused_at_once, says
from files import NAME, backup, remove
from kit import storage
from programs import Answer, wait_until
from replicas import Replicas, metric
from trial import FULL, children

SOME = 10 if FULL else 2


@pytest.fixture
def trial(tmp_path, programs):
    return lambda **options: FaultyTrial(tmp_path, programs, **options)


DISK = {
    "sync-wal": "fdatasync of the log fails (EIO)",
    "sync-db": "fdatasync of the file fails (EIO)",
    "full": "a write fails (ENOSPC)",
}


@pytest.mark.parametrize("fault", DISK)
def test_the_disk_fails(trial, table, fault):
    run = trial().start(clients=8, pause=0.01)
    for _ in range(SOME):
        run.note()
        with run.faults.during(fault):
            if fault == "sync-db":  # the log takes everything meanwhile
                run.more(100)
            else:
                says(run.service, "disk")
                refused_at_once(run.service, "disk")
        recovers(run.service, 3)
        run.more()
    run.finish(DISK[fault], table)
    assert not run.load.unknown
    assert not run.load.broken
    assert set(run.told()) == ({201} if fault == "sync-db" else {201, 503})


def test_the_log_cannot_be_synced_for_longer_than_a_request_waits(trial, table):
    run = trial(VALIDATION_RETRY="30").start(clients=8, pause=0.01)
    for _ in range(3 if FULL else 1):
        run.note()
        run.equipment.kill()
        wait_until(lambda: run.online() is None, "only requests write now")
        before = len(run.load.unknown)
        with run.faults.during("sync-wal"):
            unknown = lambda: len(run.load.unknown) > before  # noqa: E731, B023
            wait_until(unknown, "someone is told that the outcome is unknown", 20)
        recovers(run.service, 3)
        run.equipment.start()
        run.more()
    run.finish("fdatasync of the log fails for 10 s", table)
    for key in run.load.unknown:
        first, again = (
            run.service.post("/transactions", {"station_id": 1}, Idempotency_Key=key) for _ in range(2)
        )
        assert first.json["id"] == again.json["id"]


@pytest.mark.parametrize("kill", ["killed (SIGKILL)", "stopped (SIGTERM)"])
def test_the_service_ends_while_commits_are_in_doubt(trial, table, kill):
    run = trial().start(clients=8, pause=0.01)
    for _ in range(SOME):
        run.note()
        run.faults.begin("sync-wal")
        says(run.service, "disk")
        run.service.crash() if "KILL" in kill else run.service.stop()
        run.faults.end("sync-wal")
        run.service.start()
        run.ready()
        run.more()
    run.finish(f"service {kill} while commits are in doubt", table)


def test_another_process_holds_the_lock(trial, table):
    run = trial().start()
    for _ in range(3 if FULL else 1):
        run.note()
        with contextlib.closing(sqlite3.connect(run.folder / NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            says(run.service, "database is locked", "takes too long")
            wait_until(lambda: run.told()[503] > 8, "requests are refused")
            other.execute("ROLLBACK")
        recovers(run.service, 3)
        run.more()
    run.finish("another process holds the write lock", table)
    assert set(run.told()) == {201, 503}


def test_verdicts_that_cannot_be_stored_are_kept(trial, table):
    run = trial(VALIDATION_TIMEOUT="2", VALIDATION_RETRY="0.5").start(clients=1)
    run.load.stop()
    for _ in range(3 if FULL else 1):
        run.note()
        run.equipment.send(signal.SIGSTOP)
        for _ in range(20):
            run.load.accepted.append(run.service.post("/transactions", {"station_id": 1}).json["id"])
        wait_until(lambda: run.status("EXPIRED") == 20, "all are EXPIRED")
        with contextlib.closing(sqlite3.connect(run.folder / NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            run.equipment.send(signal.SIGCONT)
            held = lambda: metric(run.service, "energy2go_held_jobs") >= 20  # noqa: E731
            wait_until(held, "the verdicts wait to be stored", 20)
            other.execute("ROLLBACK")
        recovers(run.service, 3)
        wait_until(lambda: run.status("EXPIRED") == 0, "all have their verdicts")
    run.finish("20 late verdicts come while another process holds the write lock", table)


def test_the_files_are_moved_away_and_back(trial, table):
    run = trial().start()
    away = run.folder / "away"
    away.mkdir()
    for _ in range(SOME):
        run.note()
        for file in run.folder.glob(f"{NAME}*"):
            file.rename(away / file.name)
        says(run.service, "was removed or replaced")
        refused_at_once(run.service, "was removed or replaced")
        for file in away.iterdir():
            file.rename(run.folder / file.name)
        recovers(run.service)
        run.more()
    run.finish("database files moved away and back", table)
    assert set(run.told()) == {201, 503}


def put_a_journal(file: Path) -> None:
    Path(f"{file}-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(5000))


SIDES = {
    "-wal removed, the URL names a link": lambda file: Path(f"{file}-wal").unlink(),
    "-shm removed": lambda file: Path(f"{file}-shm").unlink(),
    "a foreign -journal put there": put_a_journal,
}


@pytest.mark.parametrize("name", SIDES)
def test_a_file_beside_the_database_is_removed_or_put_there(trial, table, name, tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / NAME)
    run = trial(DATABASE_URL=f"sqlite:///{tmp_path}/link.db").start()
    for _ in range(3 if FULL else 1):
        run.note()
        SIDES[name](run.folder / NAME)
        noticed = lambda: "while the service runs" in run.service.said()  # noqa: E731
        wait_until(noticed, "it notices")
        run.service.crash()
        Path(f"{run.folder / NAME}-journal").unlink(missing_ok=True)
        run.service.start()
        run.ready()
        run.more()
    run.finish(f"{name}, then kill -9", table)
    assert set(run.told()) <= {201, 503}


def test_a_backup_is_copied_over_a_file_whose_log_is_left(trial, table):
    run = trial().start()
    run.more(500)
    for _ in range(3 if FULL else 1):
        run.note()
        old = backup(run.folder)
        with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as copy:
            copy.execute('DELETE FROM "transaction" WHERE random() % 2')
            copy.execute("VACUUM")
        run.query("PRAGMA wal_checkpoint(TRUNCATE)")  # from here on, the log has only some of the pages
        run.more()
        run.service.crash()
        before = {file: file.read_bytes() for file in run.folder.glob(f"{NAME}*")}
        (run.folder / NAME).write_bytes(old.read_bytes())
        old.unlink()
        run.service.start()
        says(run.service, "damaged", seconds=15)
        run.service.stop()
        for file, content in before.items():
            file.write_bytes(content)
        run.query("DROP INDEX transaction_idempotency_key")  # it is made again
        run.service.start()
        run.ready()
        run.more()
    run.finish("a backup copied over a file whose -wal is left, then put right", table)
    assert "transaction_idempotency_key" in str(run.query("SELECT name FROM sqlite_schema"))


@pytest.mark.parametrize("way", ["removed", "replaced by a backup"])
def test_the_files_are_gone(trial, table, way):
    run = trial().start()
    count, lost = 3 if FULL else 1, 0
    for _ in range(count):
        copy = backup(run.folder)
        remove(run.folder)
        if way == "removed":
            copy.unlink()
        else:
            copy.rename(run.folder / NAME)
        says(run.service, "was removed or replaced")
        before = len(run.load.accepted)
        wait_until(lambda: run.told()[503] > 20, "requests are refused")
        lost += len(run.load.accepted) - before
        run.service.stop()
        run.service.start()
        recovers(run.service, 15)
        run.ready()
        run.service.post("/stations", {"description": "Teste"})
        run.more()
    run.load.stop()
    accepted = len(run.load.accepted)
    table.append((f"database files {way}, then a restart", count, accepted, lost, 0, 0))
    assert not lost
    found = {row[0] for row in run.query('SELECT id FROM "transaction"')}
    assert {key.replace("-", "") for key in run.load.accepted[-30:]} <= found


def test_the_clock_of_the_machine_steps(trial, table):
    run = trial().start(clients=1, pause=0)
    steps = (3600, -3600, 0, -time.time(), 86400, 0)
    for step in itertools.islice(itertools.cycle(steps), 18 if FULL else 6):
        run.note()
        run.faults.set_clock(step)
        run.more()
    assert run.load.accepted == sorted(run.load.accepted)
    run.finish("clock of the machine steps, up to 1970", table)
    assert not run.query('SELECT 1 FROM "transaction" WHERE updated < created')
    assert set(run.told()) == {201}


def test_the_clock_is_ahead_for_a_moment_while_retention_runs(trial, table):
    run = trial(RETENTION_DAYS="90").start(clients=1, pause=0)
    for _ in range(SOME):
        run.note()
        run.faults.set_clock(400 * 86400)
        run.more(1)
        run.faults.set_clock(0)
        run.more()
    says_ahead = lambda: "ahead of the clock" in run.service.said()  # noqa: E731
    wait_until(says_ahead, "the log says that the clock is behind")
    run.finish("clock of the machine is 400 days ahead for a moment, with RETENTION_DAYS=90", table)
    assert set(run.told()) == {201}


def test_the_clock_goes_beyond_what_python_can_tell(trial, table):
    run = trial().start(clients=1)
    for _ in range(3 if FULL else 1):
        run.note()
        old = run.worker
        run.faults.set_clock(300 * 365 * 86_400)
        wait_until(lambda: old not in children(run.service.pid), "the worker has ended")  # noqa: B023
        run.faults.set_clock(0)
        run.ready()
        run.more()
    run.finish("clock beyond 2262", table)
    assert set(run.told()) <= {201, 500, 503}  # 500: the outcome is unknown
    assert run.told()[500] <= len(run.load.unknown)


def frozen(postgres) -> contextlib.ExitStack:
    """All processes of PostgreSQL are stopped (SIGSTOP) until the block ends."""
    thaw = contextlib.ExitStack()
    for pid in (postgres.pid, *postgres.children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            thaw.callback(os.kill, pid, signal.SIGCONT)
    return thaw


def within(seconds: float, service, path: str) -> Answer:
    """The answer to a GET, which must come in time."""
    began = time.monotonic()
    answer = service.get(path)
    assert time.monotonic() - began < seconds, path
    return answer


def test_postgresql_is_frozen(tmp_path, programs, postgres, table):
    run = Replicas(tmp_path, programs, postgres, 1).start()
    (service,) = run.services
    run.load(clients=4, pause=0.05)
    for _ in range(3 if FULL else 1):
        run.more()
        with frozen(postgres), ThreadPoolExecutor(60) as pool:
            began = time.monotonic()
            paths = ["/stations", "/stations/1", "/transactions"] * 16
            answers = pool.map(lambda path: within(6, service, path), paths)
            health = pool.map(lambda path: within(6, service, path), ["/readyz", "/healthz", "/metrics"] * 3)
            assert {answer.status for answer in answers} == {503}
            assert [answer.status for answer in health] == [503, 503, 200] * 3
            while time.monotonic() - began < (30 if FULL else 8):
                assert within(6, service, "/readyz").json["database"] != "ok"
                assert within(6, service, "/healthz").status == 503
                assert b"energy2go_pending_transactions" not in within(6, service, "/metrics").body
        wait_until(lambda: service.get("/readyz").status == 200, "all works again", 6)
    run.more()
    run.settled()
    began = time.monotonic()
    run.finish()
    table.append(
        ("PostgreSQL frozen (SIGSTOP)", 1, len(run.loads[0].accepted), 0, 0, time.monotonic() - began)
    )
    with frozen(postgres), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.get, "/stations")
        service.stop(seconds=6)
        assert asked.exception() or asked.result().status == 503


def test_a_read_that_takes_too_long_is_ended(database_url):
    database = storage.connect(database_url, 3)
    endless = "WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT count(*) FROM x"
    path = database_url.removeprefix("sqlite:///")
    if path != database_url:
        Path(path).touch()
    began = time.monotonic()
    with database.connection_context(), pytest.raises(storage.ERRORS), storage.limited(database):
        storage.execute(database, endless)
    assert 4 < time.monotonic() - began < 15
    with database.connection_context(), database.atomic():  # what comes later has no limit
        assert storage.execute(database, "SELECT 1") == [(1,)]
        if storage.is_postgresql(database):
            assert storage.execute(database, "SHOW statement_timeout") == [("0",)]
    database.close_all()


def test_postgresql_cuts_the_connections(tmp_path, programs, postgres, table):
    run = Replicas(tmp_path, programs, postgres, 1).start()
    run.load(clients=8, pause=0)
    count = 200 if FULL else 20
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{run.database}'"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as other:
        for _ in range(count):
            run.more(3)
            other.execute(cut)
    run.more()
    began = time.monotonic()
    told = run.finish()
    took = time.monotonic() - began
    table.append(("PostgreSQL cuts all connections", count, len(run.loads[0].accepted), 0, 0, took))
    assert set(told) <= {201, 503}


def test_a_session_locks_one_row_of_postgresql(tmp_path, programs, postgres, table):
    run = Replicas(tmp_path, programs, postgres, 1).start()
    run.equipment.send(signal.SIGSTOP)
    key = run.services[0].post("/transactions", {"station_id": 1}).json["id"]
    with psycopg.connect(postgres.url(run.database)) as other:
        other.execute('SELECT 1 FROM "transaction" FOR UPDATE')
        run.equipment.send(signal.SIGCONT)
        run.load(clients=8, pause=0)
        run.more(200)
        assert run.query(f"SELECT status FROM \"transaction\" WHERE id = '{key}'") == [("PENDING",)]
    run.more()
    began = time.monotonic()
    told = run.finish()
    took = time.monotonic() - began
    table.append(("a session locks a PENDING row of PostgreSQL", 1, len(run.loads[0].accepted), 0, 0, took))
    assert set(told) == {201}


def test_a_replica_is_frozen_while_it_holds_the_lock(tmp_path, programs, postgres, table):
    run = Replicas(tmp_path, programs, postgres, 2).start()
    run.load(clients=4, pause=0)
    frozen, _ = run.services
    (worker,) = frozen.children
    holder = """SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND granted AND state LIKE 'idle in transaction%'"""

    def freeze() -> bool:
        os.kill(worker, signal.SIGSTOP)
        if run.query(holder):
            return True
        os.kill(worker, signal.SIGCONT)
        return False

    count = 3 if FULL else 1
    for _ in range(count):
        wait_until(freeze, "it is frozen while it holds the lock", 60)
        run.more(loads=run.loads[1:])
        os.kill(worker, signal.SIGCONT)
        run.more()
    accepted = sum(len(load.accepted) for load in run.loads)
    began = time.monotonic()
    told = run.finish()
    took = time.monotonic() - began
    table.append(("a replica is frozen while it holds PostgreSQL's lock", count, accepted, 0, 0, took))
    assert set(told) <= {201, 503}


def test_a_session_locks_the_table(tmp_path, programs, postgres, table):
    run = Replicas(tmp_path, programs, postgres, 1).start()
    run.load(clients=4, pause=0)
    count = 3 if FULL else 1
    for _ in range(count):
        run.more()
        with psycopg.connect(postgres.url(run.database)) as other:
            other.execute('LOCK TABLE "transaction" IN EXCLUSIVE MODE')
            refused = run.loads[0].statuses[503]
            wait_until(lambda: run.loads[0].statuses[503] > refused + 3, "requests are refused")  # noqa: B023
        run.more()
    began = time.monotonic()
    told = run.finish()
    took = time.monotonic() - began
    table.append(("a session locks PostgreSQL's table", count, len(run.loads[0].accepted), 0, 0, took))
    assert set(told) == {201, 503}
