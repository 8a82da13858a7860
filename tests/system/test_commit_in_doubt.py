"""Commits that fail while the disk does: what is answered, what is stored, and what /readyz says.

`test_faults_database.py` breaks the disk under load.
"""

import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from faulty import Faults, recovers, refused, says
from files import NAME
from installation import Installation
from ledger import UNKNOWN
from programs import wait_until


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, programs_of_file, faults):
    """The three programs of this file."""
    return Installation(tmp_path_factory.mktemp("doubt"), programs_of_file, **faults.environment).start()


@pytest.fixture(autouse=True)
def idle(run):
    """Nothing is due before a test, so nothing is written."""
    run.broker.running or run.broker.start()
    run.ready()
    wait_until(lambda: run.status("PENDING") == 0, "nothing is due")


def post(run: Installation, key: str):
    return run.service.post("/transactions", {"station_id": 1}, Idempotency_Key=key)


def in_doubt(run: Installation, pool: ThreadPoolExecutor, count: int = 3) -> dict:
    """Requests whose COMMIT has just failed: futures of their answers, by key."""
    sent = {key: pool.submit(post, run, key) for key in (str(uuid4()) for _ in range(count))}
    says(run.service, "disk I/O error")
    return sent


def stored(run: Installation, key: str) -> int:
    """How many transactions have this Idempotency-Key."""
    return len(run.query(f"SELECT 1 FROM \"transaction\" WHERE idempotency_key = '{key}'"))


def test_what_is_in_doubt_is_stored_once_and_answered_201_with_its_first_id(run, faults):
    with ThreadPoolExecutor() as pool:
        with faults.during("sync-wal"):
            sent = in_doubt(run, pool)
        answers = {key: future.result() for key, future in sent.items()}
    for key, answer in answers.items():
        again = post(run, key)
        # One that came after the first had failed was refused at once, so it is not stored.
        assert (answer.status, again.status) in ((201, 200), (503, 201))
        same = {name: again.json[name] for name in ("id", "created")}
        assert same.items() <= answer.json.items() or "nothing was stored" in answer.json["detail"]
        assert stored(run, key) == 1
    assert 201 in {answer.status for answer in answers.values()}


def test_a_doubt_that_lasts_is_answered_as_unknown(run, faults):
    key, doubtful = str(uuid4()), []
    with faults.during("sync-wal"):
        doubtful.append(post(run, key))
        refused(run.service, "disk I/O error")
        assert "disk I/O error" in run.service.says("database")
    recovers(run.service)
    with faults.during("sync-wal"):
        doubtful.append(run.service.request("PUT", "/stations/1", {"description": "x"}))
    recovers(run.service)
    advices = "With an Idempotency-Key, send the request again", "404 or 412"
    for answer, advice in zip(doubtful, advices, strict=True):
        assert (answer.status, UNKNOWN in answer.json["detail"]) == (503, True)
        assert advice in answer.json["detail"]
    retried = post(run, key)
    assert retried.status in (200, 201)
    assert post(run, key).json["id"] == retried.json["id"]
    assert stored(run, key) == 1


def test_without_traffic_it_recovers_by_itself(run, faults):
    run.broker.kill()
    with ThreadPoolExecutor() as pool:
        with faults.during("sync-wal"):
            in_doubt(run, pool, 1)
        recovers(run.service)
    assert run.service.post("/transactions", {"station_id": 1}).status == 201


def test_another_process_that_reads_the_log_is_named(run, faults):
    with contextlib.closing(sqlite3.connect(run.folder / NAME)) as reader, ThreadPoolExecutor() as pool:
        reader.execute("BEGIN")
        reader.execute('SELECT count(*) FROM "transaction"').fetchall()
        with faults.during("sync-wal"):
            (future,) = in_doubt(run, pool, 1).values()
        says(run.service, "another process is reading")
        refused(run.service, "another process is reading")
        reader.close()
        answer = future.result()
    assert answer.status == 201 or UNKNOWN in answer.json["detail"]
    recovers(run.service)
    assert run.service.post("/transactions", {"station_id": 1}).status == 201
