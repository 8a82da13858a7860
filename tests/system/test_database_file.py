"""The database's file is removed, replaced, moved, damaged or locked under the running service."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from faulty import database_says, recovers, refused_at_once, says
from files import NAME, backup, digits, query, remove, stored
from load import Load
from programs import ROOT, Service, wait_until


def move_a_backup_there(folder: Path) -> None:
    backup(folder).rename(folder / NAME)


def remove_and_copy(folder: Path) -> None:
    copy = backup(folder)
    remove(folder)
    copy.rename(folder / NAME)


def make_a_folder_there(folder: Path) -> None:
    remove(folder)
    (folder / NAME).mkdir()


def remove_the_log(folder: Path) -> None:
    (folder / f"{NAME}-wal").unlink()


def put_a_journal_there(folder: Path) -> None:
    (folder / f"{NAME}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))


GONE = [remove, move_a_backup_there, remove_and_copy, make_a_folder_there, remove_the_log]
GONE += [put_a_journal_there]


@pytest.mark.parametrize("harm", GONE)
@pytest.mark.parametrize("busy", [True, False], ids=["under load", "without traffic"])
def test_a_file_that_is_removed_or_replaced_takes_no_transaction(started, folder, harm, busy):
    load = Load(started, clients=8 if busy else 1).start()
    wait_until(lambda: len(load.accepted) > 50, "some are accepted")
    if not busy:
        load.stop()
    harm(folder)
    before = len(load.accepted)
    says(started, "was removed or replaced while the service runs", "was put there while the service runs")
    refused_at_once(started, "while the service runs")
    for _ in range(0 if harm is put_a_journal_there else 20):  # readers do not heal it
        started.get("/transactions")
    assert "while the service runs" in database_says(started)
    load.stop()
    assert started.stop() == 0
    if harm is put_a_journal_there:
        (folder / f"{NAME}-journal").unlink()
    if harm in (remove_the_log, put_a_journal_there):  # these harm no row
        assert digits(load.accepted) <= stored(folder)
    if (folder / NAME).is_dir():
        (folder / NAME).rmdir()
    started.start()
    recovers(started, 15)
    # What it accepted on the way is in no file; it answered none of that with 201 after it had noticed.
    # A journal, at which it looks five times a second, harms no row.
    assert len(load.accepted) - before < (600 if harm is put_a_journal_there else 60)
    assert started.post("/stations", {"description": "Teste"}).status == 201
    accepted = started.post("/transactions", {"station_id": 1}).json["id"]
    assert digits([accepted]) <= stored(folder)


def test_the_file_that_a_link_names_is_watched_and_loses_nothing(service, folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/here.db").symlink_to(folder / NAME)
    started = service(DATABASE_URL=f"sqlite:///{tmp_path}/links/here.db")
    started.post("/stations", {"description": "Teste"})
    load = Load(started, clients=8).start()
    wait_until(lambda: len(load.accepted) > 50, "some are accepted")
    assert wal_bytes(started) > 0
    (tmp_path / "links/here.db").unlink()  # only a name
    (tmp_path / "links/here.db").symlink_to("elsewhere.db")
    goal = len(load.accepted) + 50
    wait_until(lambda: len(load.accepted) > goal, "more are accepted")
    remove_the_log(folder)
    says(started, f"{folder / NAME}-wal was removed or replaced")
    refused_at_once(started, "was removed or replaced")
    load.stop()
    started.crash()
    assert digits(load.accepted) <= stored(folder)


def move(folder: Path, names: str = f"{NAME}*"):
    """Move files away; returns a function that moves them back."""
    away = folder.with_name("away")
    away.mkdir()
    for file in folder.glob(names):
        file.rename(away / file.name)

    def back() -> None:
        for file in away.iterdir():
            file.rename(folder / file.name)

    return back


def rename(folder: Path):
    """Rename the folder; returns a function that names it as before."""
    away = folder.with_name("away")
    folder.rename(away)
    return lambda: away.rename(folder)


@pytest.mark.parametrize("readers", [True, False])
@pytest.mark.parametrize(
    "leave", [move, lambda folder: move(folder, NAME), rename], ids=["all", "file", "folder"]
)
def test_a_file_that_comes_back_is_used_again(started, folder, leave, readers):
    load = Load(started, clients=8).start()
    wait_until(lambda: len(load.accepted) > 50, "some are accepted")
    back = leave(folder)
    says(started, "was removed or replaced")
    if readers:
        for _ in range(20):
            started.get("/transactions")
    refused_at_once(started, "was removed or replaced")
    back()
    recovers(started)
    goal = len(load.accepted) + 50
    wait_until(lambda: len(load.accepted) > goal, "more are accepted")
    load.stop()
    found = stored(folder)
    assert digits(load.accepted) <= found
    assert not set(load.refused) & {
        key for (key,) in query(folder / NAME, 'SELECT idempotency_key FROM "transaction"')
    }


def test_a_lock_that_another_process_holds_is_waited_for_and_then_named(started, folder):
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        answer = started.post("/transactions", {"station_id": 1})
        assert answer.status == 503
        assert "nothing was stored: database is locked" in answer.json["detail"]
        assert time.monotonic() - began < 6
        says(started, "database is locked", seconds=1)
        for _ in range(5):
            refused_at_once(started, "database is locked")
        wait_until(lambda: time.monotonic() - began > 12, "some more attempts have failed")
        refused_at_once(started, "database is locked")
        other.execute("ROLLBACK")
    assert recovers(started) < 3
    assert started.post("/transactions", {"station_id": 1}).status == 201
    assert len(stored(folder)) == 1


def test_without_traffic_a_lock_is_named_too(started, folder):
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        says(started, "database is locked", "takes too long")
        other.execute("ROLLBACK")
    recovers(started)


def wal_bytes(service: Service) -> float:
    for line in service.get("/metrics").body.decode().splitlines():
        if line.startswith("energy2go_wal_bytes "):
            return float(line.split()[1])
    raise AssertionError("no such metric")


def test_an_open_reader_lets_the_log_grow_and_it_shrinks_afterwards(started, folder):
    load = Load(started, clients=16).start()
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM station").fetchall()
        wait_until(lambda: wal_bytes(started) > 12 * 2**20, "the gauge shows it", 60)
        assert (folder / f"{NAME}-wal").stat().st_size > 12 * 2**20
    wait_until(lambda: wal_bytes(started) <= 8 * 2**20, "it shrinks")
    load.stop()
    assert set(load.statuses) == {201}
    assert (folder / f"{NAME}-wal").stat().st_size <= 8 * 2**20


MOUNT = """
mount --bind "$FILE" "$PLACE" && cd "$ROOT" || exit 3
"$PYTHON" -c 'import os; from kit.files import warn_of_mount
warn_of_mount(os.environ["PLACE"]); warn_of_mount(os.environ["FILE"])'
"""


def in_a_namespace(script: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell script whose mounts nobody else sees."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    environment |= os.environ | {"ROOT": str(ROOT), "PYTHON": sys.executable}
    command = ["unshare", "--mount", *user, "sh", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_file_that_is_mounted_by_itself_gets_a_warning(tmp_path):
    (file := tmp_path / "outside.db").touch()
    (place := tmp_path / "a place\\1#ü.db").touch()
    (warning,) = in_a_namespace(MOUNT, FILE=str(file), PLACE=str(place)).stderr.splitlines()
    assert warning.startswith(f"{place} is a mount point")


FILL = """
mount -t tmpfs -o size=4m tmpfs "$PLACE" && cd "$ROOT" || exit 3
"$PYTHON" -c "$OPEN"; dd if=/dev/zero of="$PLACE/fill" bs=4k 2>/dev/null; "$PYTHON" -c "$OPEN"
"""
OPEN = """
import os, models
from kit.storage import Store
store = Store(f"sqlite:///{os.environ['PLACE']}/x.db", 3, "migrations", models.TABLES)
store.recover()
print(store.problem or "ok")
store.close()
"""


def test_a_disk_that_is_full_at_the_start_is_called_full(tmp_path):
    (tmp_path / "place").mkdir()
    done = in_a_namespace(FILL, PLACE=str(tmp_path / "place"), OPEN=OPEN)
    assert done.stdout.splitlines() == ["ok", "the disk is full"]


def test_an_index_of_the_log_that_is_removed_takes_nothing_with_it(started, folder):
    load = Load(started, clients=8).start()
    wait_until(lambda: len(load.accepted) > 50, "some are accepted")
    (folder / f"{NAME}-shm").unlink()
    # Other processes would make a new one and not see our locks. Ours does so too, once it has let go.
    wait_until(lambda: "-shm was removed or replaced" in started.said(), "it notices")
    assert digits(load.accepted) <= stored(folder)
    load.stop()
    started.crash()
    assert digits(load.accepted) <= stored(folder)
    assert query(folder / NAME, "PRAGMA integrity_check") == [("ok",)]


def test_a_log_that_is_removed_takes_nothing_with_it(started, folder):
    load, done = Load(started, clients=8).start(), threading.Event()

    def read() -> None:
        while not done.is_set():
            started.get("/transactions?limit=200")

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    wait_until(lambda: len(load.accepted) > 200, "some are accepted")
    remove_the_log(folder)
    says(started, "was removed or replaced", "damaged")
    done.set()
    load.stop()
    for reader in readers:
        reader.join()
    started.crash()
    assert digits(load.accepted) <= stored(folder)
