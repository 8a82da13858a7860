"""Faults of the service, its clients and its log under load: nothing is lost, and nothing stays PENDING.

`make test` injects one fault of each program, `make test-faults` all of them, as often as its table shows.
"""

import contextlib
import fcntl
import os
import random
import sqlite3
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from idle import Crowd, everybody
from installation import metric, resident
from load import Load
from programs import ROOT, kill, wait_until
from raw import talk
from trial import FULL, Fault, Trial, each, endure

MOMENTS = random.Random(20)


def crash(run: Trial) -> None:
    run.more(MOMENTS.randrange(1, 60))
    run.service.crash()
    assert run.query("PRAGMA integrity_check") == [("ok",)]
    run.service.start()


def kill_the_worker(run: Trial) -> None:
    kill([run.service.worker])


def stop(run: Trial) -> None:
    assert run.service.stop() == 0
    stored = {key for (key,) in run.query('SELECT idempotency_key FROM "transaction"')}
    assert not stored & set(run.load.broken), "a request was stored and not answered"
    run.service.start()


def die(run: Trial, way: str) -> None:
    worker = run.service.worker
    with contextlib.suppress(OSError):  # the process may die before it answers
        run.service.post(f"/die/{quote(way)}", {})
    wait_until(lambda: not Path(f"/proc/{worker}/exe").exists(), "the process has ended")
    assert "the process ends" in run.service.said()


def break_the_start(run: Trial) -> None:
    before = run.service.said().count("a worker cannot start")
    (run.folder / "absent").touch()
    kill_the_worker(run)
    again = lambda: run.service.said().count("a worker cannot start") > before + 1  # noqa: E731
    wait_until(again, "it is tried again")
    (run.folder / "absent").unlink()


def can_be_broken(run: Trial) -> None:
    run.service.environment["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests/support"
    run.service.environment["ABSENT"] = str(run.folder / "absent")
    run.service.command[-1] = "dying:app"


def come(run: Trial) -> None:
    worker = run.service.worker
    with Crowd(run.service) as opened:
        everybody(opened)
        run.more()
    assert run.service.worker == worker, "the worker died"


def few_descriptors(run: Trial) -> None:
    run.service.command[:0] = ["prlimit", "--nofile=1024:1024"]


FAULTS = {
    "service killed (SIGKILL, master and worker)": Fault(crash, 20, {201, None}),
    "worker killed (SIGKILL)": Fault(kill_the_worker, 10, {201, None}),
    "service reloaded (SIGHUP)": Fault(lambda run: run.service.reload(), 10, load={"keep_alive": False}),
    "service stopped (SIGTERM)": Fault(stop, 10, {201, None}, load={"keep_alive": False}),
    **{
        f"a thread dies: {way}": Fault(partial(die, way=way), answers={201, 503, None}, before=can_be_broken)
        for way in ("an error in the ledger", "an exit of the listener")
    },
    "a worker cannot start for the moment": Fault(break_the_start, 1, {201, None}, before=can_be_broken),
    f"{everybody.__doc__}; 1024 descriptors": Fault(come, before=few_descriptors),
}


@pytest.mark.parametrize("name", each(FAULTS, "service killed (SIGKILL, master and worker)"))
def test_the_service(trial, table, name):
    endure(trial(**FAULTS[name].options), name, FAULTS[name], table)


@pytest.mark.fault
def test_a_backlog_is_drained_while_http_stays_responsive(trial, table):
    run, count = trial(), 100_000 if FULL else 20_000
    run.equipment.environment["VALIDATOR_DELAY_MS"] = "200"
    run.service.start()
    assert run.station() == 1
    run.service.stop()
    now = int(time.time() * 1e6)
    with contextlib.closing(sqlite3.connect(run.folder / "energy2go.db")) as database, database:
        rows = ((uuid.uuid4().hex, now + number, now, now + number) for number in range(count))
        columns = "id, station_id, status, created, updated, attempts, retry_at"
        insert = f"INSERT INTO \"transaction\" ({columns}) VALUES (?, 1, 'PENDING', ?, ?, 0, ?)"
        database.executemany(insert, rows)
    for program in (run.broker, run.equipment, run.service):
        program.start()
    run.ready()
    run.load = Load(run.service, clients=2, pause=0.05).start()
    run.note()
    wait_until(lambda: run.status("PENDING") < 0.5 * count, "a part of it is settled", 600)
    early = resident(run.service.worker)
    assert run.service.get("/transactions?status=PENDING").status == 200
    wait_until(lambda: run.status("PENDING") < 1000, "the rest is settled", 600)
    assert resident(run.service.worker) - early < 10, "the service's memory grows"
    run.finish(f"{count} PENDING at start, equipment slow", table)
    assert set(run.load.statuses) == {201}


# The log


@pytest.mark.fault
@pytest.mark.parametrize("way", ["the pipe is full", "the reader has gone"])
def test_nobody_reads_the_log(trial, table, way):
    run = trial(LOG_LEVEL="DEBUG")
    path = str(run.folder / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    run.service.command = ["sh", "-c", 'exec "$@" 2>"$0"', path, *run.service.command]
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    said = []

    def lost() -> bool:
        with contextlib.suppress(BlockingIOError):
            said.append(os.read(reader, 65_536).decode(errors="replace"))
        return "lines before it were lost" in "".join(said)

    def fill(run: Trial) -> None:
        if "gone" in way:
            os.close(reader)
        asked = b"GET /nothing HTTP/1.1\r\nHost: x\r\n"
        flood = (asked + b"\r\n") * 999 + asked + b"Connection: close\r\n\r\n"
        for _ in range(3):
            assert talk(run.service.port, flood, half_close=False).count(b"HTTP/1.1 404") == 1000
        dropped = lambda: metric(run.service, "energy2go_log_lines_dropped_total") > 100  # noqa: E731
        wait_until(dropped, "lines are counted")
        run.more()
        if "gone" not in way:
            wait_until(lost, "the log says how many were lost")

    endure(run, f"log: {way}", Fault(fill, 1), table)
    run.service.stop()


ENDS = {
    "the log is full": "os.dup2(os.pipe()[1], 2); fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 4096)\n"
    "for _ in range(1000): logging.warning('x' * 100)",
    "the log's lock is held": "threading.Thread(target=logging.root.handlers[0].acquire).start()",
}


@pytest.mark.parametrize("way", ENDS)
def test_nothing_keeps_a_process_that_must_end(way):
    code = f"""if 1:
        import fcntl, logging, logging.config, os, threading
        from kit import logs
        from kit.settings import Settings
        logging.config.dictConfig({{"version": 1}} | logs.configuration(Settings()))
        exec({ENDS[way]!r})
        logs.end_the_process("a thread died", ValueError("why"))
    """
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
