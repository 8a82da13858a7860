"""Files that must not be used: damaged, with another file's log, or with another schema."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faulty import Faults, database_says, recovers, refused_at_once, says
from files import NAME, backup, digits, query, remove, stored
from load import Load
from programs import Service, wait_until


def fill(service: Service, count: int = 300) -> list[str]:
    """Store some transactions; returns their ids."""
    load = Load(service, clients=8, total=count).start()
    load.join()
    assert set(load.statuses) == {201}
    return load.accepted


def garbage(folder: Path) -> None:
    """Write garbage over all pages but the first."""
    size = (folder / NAME).stat().st_size
    with (folder / NAME).open("r+b") as pages:
        pages.seek(4096)
        pages.write(b"\xa5" * (size - 4096))


def no_database(folder: Path) -> None:
    """Copy another file over it, in place."""
    (folder / "other").write_bytes(b"This is no database. " * 5000)
    shutil.copyfile(folder / "other", folder / NAME)


@pytest.mark.parametrize("harm", [garbage, no_database])
def test_a_damaged_file_takes_no_transaction_until_a_sound_one_is_started(started, folder, harm):
    accepted = fill(started)
    query(folder / NAME, "PRAGMA wal_checkpoint(TRUNCATE)")
    sound = backup(folder)
    harm(folder)
    requests = [("GET", "/transactions", None), ("POST", "/transactions", {"station_id": 1})]
    wait_until(lambda: 503 in [started.request(*request).status for request in requests], "it notices")
    says(started, "the file is damaged")
    refused_at_once(started, "the file is damaged")
    started.stop()
    started.start()
    says(started, "the file is damaged", seconds=15)
    refused_at_once(started, "the file is damaged")
    started.stop()
    remove(folder)
    sound.rename(folder / NAME)
    started.start()
    recovers(started, 15)
    assert digits(accepted) == stored(folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{NAME}{name}").read_bytes() for name in ("", "-wal")}


def test_a_log_that_was_left_from_another_file_is_refused_and_changes_nothing(started, folder):
    fill(started, 1000)
    copy = backup(folder)
    query(copy, 'DELETE FROM "transaction" WHERE random() % 2; ')
    query(copy, "VACUUM")
    query(folder / NAME, "PRAGMA wal_checkpoint(TRUNCATE)")
    fill(started, 50)
    started.crash()
    shutil.copyfile(copy, folder / NAME)
    before = snapshot(folder)
    assert before["-wal"]
    for _ in range(2):  # stopping it must not write the log into the file
        started.start()
        says(started, "damaged", seconds=15)
        detail = refused_at_once(started, "damaged")
        assert started.get("/transactions").status == 503
        assert started.stop() == 0
        assert snapshot(folder) == before
    assert "-wal" in detail
    (folder / f"{NAME}-wal").unlink()
    started.start()
    recovers(started, 15)


def test_while_it_is_checked_the_service_is_alive_and_refuses_everything(service, folder, tmp_path):
    faults = Faults(tmp_path)
    started = service(DATABASE_URL=f"sqlite:///{folder}/{NAME}", **faults.environment)
    started.post("/stations", {"description": "Teste"})
    accepted = fill(started, 20)
    started.crash()
    with faults.during("hold"):
        started.start()
        says(started, "the database is being checked", seconds=15)
        refused_at_once(started, "the database is being checked")
        assert started.get("/healthz").status == 200
        assert started.get("/stations").status == 503
    recovers(started, 15)
    assert f"{NAME}-wal was left" in started.said()
    assert digits(accepted) == stored(folder)


def leave_a_journal(file: Path, table: str) -> None:
    """Let a process die in a transaction that has written pages: a journal is left."""
    subprocess.run([sys.executable, "-c", SPILL, str(file), table], check=False)
    assert Path(f"{file}-journal").stat().st_size > 4096


SPILL = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode = DELETE")
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN")
database.execute(f'UPDATE {sys.argv[2]} SET rowid = -rowid')
os.kill(os.getpid(), 9)
"""


def test_a_journal_that_was_left_is_used_if_it_belongs_and_refused_if_not(started, folder):
    accepted = fill(started)
    started.stop()
    leave_a_journal(folder / NAME, '"transaction"')
    foreign = Path(f"{folder / NAME}-journal").read_bytes()
    started.start()
    recovers(started, 15)
    accepted += fill(started)
    assert digits(accepted) == stored(folder)
    started.stop()
    Path(f"{folder / NAME}-journal").write_bytes(foreign)
    before = (folder / NAME).read_bytes()
    started.start()
    says(started, "damaged", seconds=15)
    refused_at_once(started, "damaged")
    assert started.stop() == 0
    assert (folder / NAME).read_bytes() == before
    Path(f"{folder / NAME}-journal").unlink()
    started.start()
    recovers(started, 15)
    assert digits(accepted) == stored(folder)


def test_a_log_whose_file_is_missing_is_not_thrown_away(started, folder):
    fill(started)
    started.crash()
    (folder / NAME).rename(folder / "moved")
    log = Path(f"{folder / NAME}-wal").read_bytes()
    started.start()
    says(started, "is missing, but", seconds=15)
    refused_at_once(started, f"{NAME}-wal is there")
    assert not (folder / NAME).exists()
    assert Path(f"{folder / NAME}-wal").read_bytes() == log
    (folder / "moved").rename(folder / NAME)
    recovers(started, 15)
    assert len(stored(folder)) == 300


def test_a_log_that_belongs_to_its_file_is_used(started, folder):
    accepted = fill(started)
    started.crash()
    assert (folder / f"{NAME}-wal").stat().st_size
    started.start()
    recovers(started, 15)
    assert digits(accepted) == stored(folder)


SCHEMAS = {
    "a later release": (
        "INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2027-01-01')",
        "9999_later",
    ),
    "a migration that changed nothing": ('ALTER TABLE "transaction" DROP COLUMN attempts', "attempts"),
    "a table that is missing": ("DROP TABLE station", "station"),
}


@pytest.mark.parametrize("change", SCHEMAS)
def test_another_schema_is_refused_at_the_start(started, folder, change):
    statement, word = SCHEMAS[change]
    started.stop()
    query(folder / NAME, statement)
    started.start()
    says(started, "the schema is", seconds=15)
    assert word in database_says(started)
    assert "\n" not in refused_at_once(started, "the schema is")
    (worker,) = started.children
    assert started.get("/readyz").status == 503
    assert started.children == [worker]  # it does not restart all the time
