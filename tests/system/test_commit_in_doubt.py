"""Commits that fail while the disk does: what is answered, what is stored, and what /readyz says."""

import contextlib
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from faulty import Faults, FaultyTrial, database_says, recovers, refused_at_once, says
from ledger import UNKNOWN
from programs import ROOT, wait_until

REASONS = ("disk I/O error", "database or disk is full")


@pytest.fixture
def trial(tmp_path, programs):
    return lambda **options: FaultyTrial(tmp_path, programs, **options)


def post(run: FaultyTrial, key: str):
    return run.service.post("/transactions", {"station_id": 1}, Idempotency_Key=key)


def idle(run: FaultyTrial) -> FaultyTrial:
    """Start this trial and end its load; nothing is due, so nothing is written."""
    run.start(clients=1)
    run.load.stop()
    wait_until(lambda: run.status("PENDING") == 0, "nothing is due")
    return run


def in_doubt(run: FaultyTrial, pool: ThreadPoolExecutor, count: int = 3) -> dict:
    """Requests whose COMMIT has just failed: futures of their answers, by key."""
    sent = {key: pool.submit(post, run, key) for key in (str(uuid4()) for _ in range(count))}
    says(run.service, *REASONS)
    return sent


@pytest.mark.parametrize("fault", ["sync-wal", "full"])
def test_under_load_a_short_fault_costs_no_transaction_and_no_answer_lies(trial, table, fault):
    run = trial().start(clients=8, pause=0.01)
    for _ in range(3):
        with run.faults.during(fault):
            says(run.service, *REASONS)
            refused_at_once(run.service)
        assert recovers(run.service) < 3
        run.more()
    run.finish(f"the disk fails: {fault}", [])
    assert not run.load.unknown
    assert not run.load.broken
    assert not run.stored_keys() & set(run.load.refused)
    assert set(run.told()) == {201, 503}


def test_what_is_in_doubt_is_stored_once_and_answered_201_with_its_first_id(trial):
    run = idle(trial())
    with ThreadPoolExecutor() as pool:
        with run.faults.during("sync-wal"):
            sent = in_doubt(run, pool)
        answers = {key: future.result() for key, future in sent.items()}
    for key, answer in answers.items():
        # One that came after the first had failed was refused at once, so it is not stored.
        assert answer.status == 201 or "nothing was stored" in answer.json["detail"]
        again = post(run, key)
        assert again.status == (200 if answer.status == 201 else 201)
        assert answer.status == 503 or again.json["id"] == answer.json["id"]
        assert answer.status == 503 or again.json["created"] == answer.json["created"]
        assert len(run.query(f"SELECT 1 FROM \"transaction\" WHERE idempotency_key = '{key}'")) == 1
    assert 201 in {answer.status for answer in answers.values()}


def test_a_doubt_that_lasts_is_answered_as_unknown_after_ten_seconds(trial):
    run = idle(trial())
    with run.faults.during("sync-wal"):
        began = time.monotonic()
        answer = post(run, "doubtful")
        took = time.monotonic() - began
        advice = (
            "With an Idempotency-Key, send the request again; without one, look for the transaction first."
        )
        assert (answer.status, answer.json["detail"]) == (503, f"{UNKNOWN} {advice}")
        assert 9 < took < 13
        refused_at_once(run.service, "disk I/O error")
        assert "disk I/O error" in database_says(run.service)
    assert recovers(run.service) < 3
    retried = post(run, "doubtful")
    assert retried.status in (200, 201)
    assert post(run, "doubtful").json["id"] == retried.json["id"]
    assert len(run.query("SELECT 1 FROM \"transaction\" WHERE idempotency_key = 'doubtful'")) == 1


def test_the_advice_after_an_unknown_outcome_depends_on_the_route(trial):
    run = idle(trial())
    for method, path, body, advice in (
        ("POST", "/stations", {"description": "x"}, "Look for the station"),
        ("PUT", "/stations/1", {"description": "x"}, "404 or 412"),
        ("DELETE", "/stations/2", None, "404 or 412"),
    ):
        with run.faults.during("sync-wal"):
            answer = run.service.request(method, path, body)
            assert (answer.status, UNKNOWN in answer.json["detail"]) == (503, True)
            assert advice in answer.json["detail"]
        recovers(run.service)


@pytest.mark.parametrize("fault", ["sync-wal", "full"])
@pytest.mark.parametrize("broker", [True, False])
def test_without_traffic_it_recovers_by_itself(trial, fault, broker):
    run = idle(trial())
    if not broker:
        run.broker.kill()
    run.faults.begin(fault)
    with ThreadPoolExecutor() as pool:
        in_doubt(run, pool, 1)
        run.faults.end(fault)
        assert recovers(run.service) < 3
    assert run.service.post("/transactions", {"station_id": 1}).status == 201


def test_it_recovers_when_the_fault_was_there_from_the_start(trial):
    run = trial()
    run.faults.begin("sync-wal")
    run.broker.start()
    run.service.start()
    says(run.service, "disk I/O error", seconds=15)
    refused_at_once(run.service, "disk I/O error")
    run.faults.end("sync-wal")
    recovers(run.service)
    assert run.service.post("/stations", {"description": "Teste"}).status == 201


def test_a_file_that_cannot_be_synced_loses_nothing(trial):
    run = trial().start(clients=8, pause=0)
    with run.faults.during("sync-db"):
        run.more(3000, 60)  # more than a checkpoint's thousand pages
        run.load.stop()
        run.service.crash()
    run.service.start()
    run.ready()
    run.finish("", [])


def test_a_killed_process_leaves_only_what_was_promised(trial):
    run = trial().start(clients=8, pause=0.01)
    for _ in range(3):
        run.faults.begin("sync-wal")
        says(run.service, "disk I/O error")
        run.service.crash()
        run.faults.end("sync-wal")
        run.service.start()
        run.ready()
        run.more()
    run.finish("", [])


def test_sigterm_ends_the_doubt_with_an_answer(trial):
    run = idle(trial())
    with run.faults.during("sync-wal"), ThreadPoolExecutor() as pool:
        sent = in_doubt(run, pool)
        began = time.monotonic()
        assert run.service.stop() == 0
        assert time.monotonic() - began < 5
        assert "cannot rollback" not in run.service.said()
    for key, future in sent.items():
        answer = future.result()
        assert answer.status == 503
        if UNKNOWN not in answer.json["detail"]:
            assert key not in run.stored_keys()


def test_another_process_that_reads_the_log_is_named(trial):
    run = idle(trial())
    with contextlib.closing(sqlite3.connect(run.folder / "energy2go.db")) as reader:
        with ThreadPoolExecutor() as pool:
            reader.execute("BEGIN")
            reader.execute('SELECT count(*) FROM "transaction"').fetchall()
            with run.faults.during("sync-wal"):
                (future,) = in_doubt(run, pool, 1).values()
            says(run.service, "another process is reading", seconds=12)
            refused_at_once(run.service, "another process is reading")
            answer = future.result()
        assert (answer.status, UNKNOWN in answer.json["detail"]) == (503, True)
    assert recovers(run.service) < 6
    assert run.service.post("/transactions", {"station_id": 1}).status == 201


STORE = """
import sys
from pathlib import Path
import models
from kit.storage import InDoubt, NotWritten, Store
from programs import MIGRATIONS

def write(name):
    try:
        with store.transaction():
            models.create_station(store.database, name)
        return "written"
    except (InDoubt, NotWritten) as error:
        return type(error).__name__

store, fault = Store(sys.argv[1], 3, MIGRATIONS, models.TABLES), Path(sys.argv[2])
store.recover()
fault.touch()
print(write("first"))
fault.unlink()
print(write("second"))
store.recover()
print(write("third"))
"""


def test_between_a_failed_commit_and_the_checkpoint_nothing_is_written(tmp_path):
    faults = Faults(tmp_path)
    environment = faults.environment | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
    url = f"sqlite:///{tmp_path}/energy2go.db"
    command = [sys.executable, "-c", STORE, url, str(faults.folder / "sync-wal")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == ["InDoubt", "NotWritten", "written"]
