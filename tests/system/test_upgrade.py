"""Upgrades from earlier releases and the way back, and a PostgreSQL that comes later."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen
from uuid import UUID

import pytest

import models
from events import to_text
from kit import storage
from kit.clock import SECOND, moment
from models import Timeouts
from programs import MIGRATIONS, ROOT, Service, wait_until

FIRST_RELEASE = """
CREATE TABLE "station" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    "description" VARCHAR(255) NOT NULL);
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


def test_a_file_of_the_first_release_is_upgraded_and_keeps_its_rows(tmp_path):
    created = 1_800_000_000 * SECOND
    later = created + 60 * SECOND
    rows = [  # status, idempotency_key, attempts, asked_at, retry_at, expires_at
        ("COMPLETED", None, 1, created, None, later),
        ("ERROR", "keyed", 1, created, None, later),
        ("EXPIRED", None, 5, created, None, later),
        ("PENDING", "waits", 0, None, created, None),
        ("PENDING", "asked", 1, created, created + 5 * SECOND, later),
    ]
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as database, database:
        database.executescript(FIRST_RELEASE)
        for number, (status, *rest) in enumerate(rows):
            values = UUID(int=number).hex, 2, status, created, created, *rest
            database.execute('INSERT INTO "transaction" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)', values)
    database = storage.connect(f"sqlite:///{tmp_path}/old.db", 1)
    storage.prepare(database, MIGRATIONS)  # checks the schema
    found = models.list_transactions(database, 10)[::-1]
    assert [one.status for one in found] == [status for status, *_ in rows]
    assert {one.created for one in found} == {moment(created)}
    assert {one.station.description for one in found} == {"Hauptbahnhof"}
    assert models.list_transactions(database, 10, idempotency_key="keyed") == [found[1]]
    for waiting, row in ((True, 3), (False, 4)):
        ((question, _),) = models.claim(database, later, Timeouts(SECOND, SECOND), 10, waiting)
        assert question.transaction_id == found[row].id
    assert models.create_station(database, "new").id == 4  # not that of a deleted station
    storage.drop(database)


@pytest.fixture(scope="module")
def release_1_1(tmp_path_factory) -> Path:
    """The folder of release 1.1."""
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(f"git -C '{ROOT}' archive 2e50e55 | tar -x -C '{folder}'", shell=True, check=True)
    return folder


def undo(url: str) -> subprocess.CompletedProcess:
    """The command of docs/operations.md."""
    command, environment = [sys.executable, "-m", "kit.undo"], os.environ | {"DATABASE_URL": url}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_release_1_1_is_upgraded_and_comes_back(kind, request, tmp_path, release_1_1, programs, equipment):
    url = f"sqlite:///{tmp_path}/energy2go.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").create()
    equipment(VALIDATOR_CONFIRM_RATE="0")
    broker = programs[0]
    posted = []

    def start(root: Path, name: str) -> Service:
        programs.append(Service(tmp_path, broker, name=name, DATABASE_URL=url))
        programs[-1].root = root
        return programs[-1].start()

    def works(service: Service) -> dict:
        """It has every transaction, and one more gets its verdict."""
        wait_until(service.ready, "it is ready")
        new = service.post("/transactions", {"station_id": 1}, Prefer="wait=20").json
        assert new["status"] == "ERROR"
        posted.append(new["id"])
        assert {service.get(f"/transactions/{key}").json["status"] for key in posted} == {"ERROR"}
        return new

    old = start(release_1_1, "old")
    wait_until(old.ready, "it is ready")
    old.post("/stations", {"description": "Teste"})
    works(old)
    if kind == "sqlite":
        old.stop()
    new = start(ROOT, "new")
    works(new)
    if kind == "postgresql":  # one after the other: the old one still works, and the new one finds its rows
        works(old)
        old.post("/stations", {"description": "Hof"})
        assert [one["description"] for one in new.get("/stations?q=hof").json["items"]] == ["Hof"]
        old.stop()
    assert "so stop the service first" in undo(url).stderr
    old = start(release_1_1, "refused")
    wait_until(lambda: "later release" in old.said(), "it refuses")
    old.stop()
    assert works(new)["reason"]
    with urlopen(f"http://127.0.0.1:{new.port}/events?after={to_text(models.FIRST)}", timeout=60) as stream:
        assert stream.readline() == b"event: reset\n"  # release 1.1 may have deleted older ones
    new.stop()
    assert (
        undo(url).stdout == "Undone: 0003_reasons_search_retention. Now start the release before this one.\n"
    )
    assert undo(url).stderr.startswith("Nothing was undone: 0002_order_of_updates does not define down()")
    works(start(release_1_1, "back"))
