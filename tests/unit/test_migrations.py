"""Changes of the schema: a file of the first release keeps its rows, and one of several processes makes the change."""

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from uuid_utils.compat import uuid7

import models
import storage
from programs import ROOT, wait_until

FIRST_RELEASE = """
CREATE TABLE "station" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "description" VARCHAR(255) NOT NULL);
CREATE TABLE "transaction" ("id" TEXT NOT NULL PRIMARY KEY, "station_id" INTEGER NOT NULL,
    "status" VARCHAR(9) NOT NULL, "created" INTEGER NOT NULL, "updated" INTEGER NOT NULL,
    "idempotency_key" VARCHAR(255), "attempts" INTEGER NOT NULL, "asked_at" INTEGER, "retry_at" INTEGER,
    "expires_at" INTEGER, FOREIGN KEY ("station_id") REFERENCES "station" ("id") ON DELETE RESTRICT);
CREATE INDEX "transaction_station_id_id" ON "transaction" ("station_id", "id");
CREATE INDEX "transaction_status_id" ON "transaction" ("status", "id");
CREATE INDEX "transaction_station_id_status_id" ON "transaction" ("station_id", "status", "id");
CREATE INDEX "transaction_retry_at" ON "transaction" ("retry_at")
    WHERE (("retry_at" IS NOT NULL) AND ("expires_at" IS NULL));
CREATE INDEX "transaction_expires_at" ON "transaction" ("expires_at")
    WHERE (("retry_at" IS NOT NULL) AND ("expires_at" > 0));
CREATE UNIQUE INDEX "transaction_idempotency_key" ON "transaction" ("idempotency_key")
    WHERE ("idempotency_key" IS NOT NULL);
INSERT INTO "station" VALUES (1, 'Teste'), (2, 'Hauptbahnhof'), (3, 'deleted');
DELETE FROM "station" WHERE id = 3;
"""
PROCESSES = 6
# Of several that open a new file of SQLite, all but one may be told that it is locked; the ledger tries again then.
MIGRATE = """
import logging, sys, time, storage, peewee
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
storage.MIGRATIONS = sys.argv[2]
storage.bind(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        storage.migrate()
        break
    except peewee.OperationalError as error:
        if "locked" not in str(error):
            raise
        storage.close()
        time.sleep(0.1)
"""
ADD_COLUMN = """
from peewee import TextField

def up(migrator, db):
    migrator.migrate(migrator.add_column("station", "city", TextField(default="Berlin")))
"""
BREAK = ADD_COLUMN + "    raise RuntimeError('this one is broken')\n"
HANG = ADD_COLUMN + "    print('half way', flush=True)\n    import time; time.sleep(60)\n"


@pytest.fixture
def database(database_url):
    """A database that this test's process looks into; it may not exist yet."""
    storage.bind(database_url)
    yield storage.proxy
    storage.close()


@pytest.fixture
def release(tmp_path, database_url, programs):
    """A function that starts a process which migrates with one more migration than there is; it waits for a line."""

    def start(more: str = "") -> Process:
        folder = tmp_path / "migrations"
        shutil.copytree(ROOT / "migrations", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        if more:
            (folder / "0002_more.py").write_text(more)
        programs.append(Process(database_url, folder))
        return programs[-1]

    return start


class Process:
    """Migrates once it is told to; `end` returns its exit status and everything it said."""

    def __init__(self, url: str, folder: Path):
        command = [sys.executable, "-B", "-c", MIGRATE, url, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        self.says("ready\n")

    def says(self, line: str) -> None:
        assert self.process.stdout.readline() == line

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def run(self) -> tuple[int, str]:
        self.go()
        return self.end()

    def kill(self) -> None:
        self.process.kill()
        with contextlib.suppress(ValueError):  # it was read to its end already
            self.process.communicate()


def applied() -> list[str]:
    return [name for (name,) in storage.proxy.execute_sql("SELECT name FROM schema_migration ORDER BY id").fetchall()]


def columns(table: str) -> set[str]:
    return {column.name for column in storage.proxy.get_columns(table)}


def schema(file: Path) -> set[str]:
    """Every table and index of a file, as SQLite has them, without the spaces that mean nothing."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL").fetchall()
    return {re.sub(r"\s+", " ", sql) for (sql,) in found}


def test_a_file_of_the_first_release_is_upgraded_and_keeps_its_rows(tmp_path, service, equipment):
    old, now = tmp_path / "energy2go.db", int(time.time() * models.SECOND)
    created = now - 3600 * models.SECOND
    rows = [
        # status, idempotency key, attempts, and three times: asked, to be asked again, and expiring
        ("COMPLETED", None, 1, created, None, created + 60 * models.SECOND),
        ("ERROR", "keyed", 1, created, None, created + 60 * models.SECOND),
        ("EXPIRED", None, 5, created, None, created + 60 * models.SECOND),
        ("PENDING", "waits", 0, None, created, None),
        ("PENDING", "asked", 1, now, now + 5 * models.SECOND, now + 60 * models.SECOND),
    ]
    keys = [uuid7() for _ in rows]
    with contextlib.closing(sqlite3.connect(old)) as database, database:
        database.executescript(FIRST_RELEASE)
        for key, (status, *rest) in zip(keys, rows, strict=True):
            values = (key.hex, 2, status, created, created, *rest)
            database.execute('INSERT INTO "transaction" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)', values)
    running = service()
    # Everything reads as it did, and what had no answer yet gets one.
    found = [running.get(f"/transactions/{key}").json for key in keys]
    assert [one["status"] for one in found[:3]] == ["COMPLETED", "ERROR", "EXPIRED"]
    assert {one["created"] for one in found} == {models.moment(created).isoformat().replace("+00:00", "Z")}
    assert {one["station"]["description"] for one in found} == {"Hauptbahnhof"}
    equipment()
    for key in keys[3:]:
        done = running.get(f"/transactions/{key}", Prefer="wait=15").json
        assert done["status"] in ("COMPLETED", "ERROR")
    assert running.post("/transactions", {"station_id": 2}, Idempotency_Key="keyed").json["id"] == str(keys[1])
    # An id that was given out once is not given out again.
    assert running.post("/stations", {"description": "new"}).headers["Location"] == "/stations/4"
    assert running.stop() == 0
    storage.bind(f"sqlite:///{tmp_path}/new.db")
    storage.migrate()
    storage.close()
    assert schema(old) == schema(tmp_path / "new.db")


def test_of_processes_that_start_together_one_migrates(database, release):
    processes = [release() for _ in range(PROCESSES)]
    for process in processes:
        process.go()
    ended = [process.end() for process in processes]
    assert {status for status, _ in ended} == {0}, ended
    assert sum("up: 0001_first_release" in said for _, said in ended) == 1
    assert applied() == ["0001_first_release"]


def test_a_later_migration_is_applied_once_and_rows_stay(database, release):
    storage.migrate()
    models.create_station("Teste")
    processes = [release(ADD_COLUMN) for _ in range(3)]
    for process in processes:
        process.go()
    ended = [process.end() for process in processes]
    assert {status for status, _ in ended} == {0}, ended
    assert applied() == ["0001_first_release", "0002_more"]
    assert columns("station") == {"id", "description", "city"}
    # The release before goes on with it until it is replaced, and may even be started again.
    storage.migrate()
    assert models.get_station(1).description == "Teste"


def test_a_migration_that_fails_changes_nothing(database, release):
    storage.migrate()
    status, said = release(BREAK).run()
    assert status
    assert "this one is broken" in said
    assert applied() == ["0001_first_release"]
    assert columns("station") == {"id", "description"}
    assert release(ADD_COLUMN).run()[0] == 0
    assert columns("station") == {"id", "description", "city"}


def test_a_process_that_dies_while_it_migrates_leaves_it_to_the_next(database, release):
    storage.migrate()
    dying = release(HANG)
    dying.go()
    dying.says("up: 0002_more\n")
    dying.says("half way\n")
    following = release(ADD_COLUMN)
    following.go()
    dying.kill()
    assert following.end()[0] == 0
    assert applied() == ["0001_first_release", "0002_more"]
    assert columns("station") == {"id", "description", "city"}


def test_a_postgresql_that_is_away_at_the_start_is_waited_for(postgres, service):
    url = postgres.create()
    name = url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    running = service(ready=False, DATABASE_URL=url)
    assert running.get("/healthz").status == 503
    with pytest.raises(psycopg.OperationalError):
        postgres.execute("SELECT 1", name)
    postgres.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    wait_until(running.ready, "it is ready")
    assert running.post("/stations", {"description": "Teste"}).status == 201
