"""A database file that is removed, replaced, damaged or locked, and one that must not be used at all.

`test_faults_database.py` does this under load.
"""

import contextlib
import sqlite3

import pytest

from faulty import Faults, recovers, refused, says
from files import NAME, backup, damage, in_a_namespace, query, stored
from installation import metric
from load import Load
from programs import Service, wait_until


@pytest.fixture
def folder(tmp_path):
    """A folder that has nothing but the database in it."""
    (tmp_path / "var").mkdir()
    return tmp_path / "var"


@pytest.fixture
def started(service, folder):
    """A service with one station, on a database in `folder`."""
    started = service(DATABASE_URL=f"sqlite:///{folder}/{NAME}")
    assert started.post("/stations", {"description": "Teste"}).status == 201
    return started


def fill(service: Service, count: int = 300) -> list[str]:
    """Store some transactions; returns their ids."""
    load = Load(service, clients=8, total=count).start()
    load.join()
    assert set(load.statuses) == {201}
    return load.accepted


# While the service runs


HARMS = {
    "a backup": lambda folder: backup(folder).rename(folder / NAME),
    "a journal": lambda folder: (folder / f"{NAME}-journal").write_bytes(JOURNAL + bytes(5000)),
}
JOURNAL = bytes.fromhex("d9d505f920a163d7")  # how one begins


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_is_replaced_takes_no_transaction_until_a_restart(started, folder, harm):
    accepted = fill(started, 50)
    HARMS[harm](folder)
    says(started, "was removed or replaced while the service runs", "was put there while the service runs")
    refused(started, "while the service runs")
    assert started.stop() == 0
    (folder / f"{NAME}-journal").unlink(missing_ok=True)
    started.start()
    recovers(started)
    assert set(accepted) == stored(folder)


def test_an_open_reader_lets_the_log_grow_and_it_shrinks_afterwards(started, folder):
    def wal() -> float:
        return metric(started, "energy2go_wal_bytes")

    load = Load(started, clients=16).start()
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM station").fetchall()
        wait_until(lambda: wal() > 12 * 2**20, "the gauge shows it", 120)
        assert (folder / f"{NAME}-wal").stat().st_size > 12 * 2**20
    wait_until(lambda: wal() <= 8 * 2**20, "it shrinks")
    load.stop()
    assert set(load.statuses) == {201}
    assert (folder / f"{NAME}-wal").stat().st_size <= 8 * 2**20


# Damaged, or with another file's log


def test_a_damaged_file_takes_no_transaction_until_a_sound_one_is_started(started, folder):
    accepted = fill(started)
    query(folder / NAME, "PRAGMA wal_checkpoint(TRUNCATE)")
    sound = backup(folder)
    damage(folder / NAME)
    requests = [("GET", "/transactions", None), ("POST", "/transactions", {"station_id": 1})]
    wait_until(lambda: 503 in [started.request(*request).status for request in requests], "it notices")
    says(started, "the file is damaged")
    refused(started, "the file is damaged")
    started.stop()
    started.start()
    says(started, "the file is damaged")
    started.stop()
    for file in folder.glob(f"{NAME}*"):
        file.unlink()
    sound.rename(folder / NAME)
    started.start()
    recovers(started)
    assert set(accepted) == stored(folder)


def test_while_it_is_checked_the_service_is_alive_and_refuses_everything(service, folder, tmp_path):
    faults = Faults(tmp_path)
    started = service(DATABASE_URL=f"sqlite:///{folder}/{NAME}", **faults.environment)
    started.post("/stations", {"description": "Teste"})
    accepted = fill(started, 20)
    started.crash()
    with faults.during("hold"):
        started.start()
        says(started, "the database is being checked")
        refused(started, "the database is being checked")
        assert started.get("/healthz").status == 200
        assert started.get("/stations").status == 503
    recovers(started)
    assert f"{NAME}-wal was left" in started.said()
    assert set(accepted) == stored(folder)


# Disks


WARN = "import sys; from kit.files import warn_of_mount; [warn_of_mount(name) for name in sys.argv[1:]]"


def test_a_file_that_is_mounted_by_itself_gets_a_warning(tmp_path):
    (file := tmp_path / "outside.db").touch()
    (place := tmp_path / "a place\\1#ü.db").touch()
    script = 'mount --bind "$1" "$2" && "$0" -c "$3" "$1" "$2"'
    (warning,) = in_a_namespace(script, str(file), str(place), WARN).stderr.splitlines()
    assert warning.startswith(f"{place} is a mount point")
