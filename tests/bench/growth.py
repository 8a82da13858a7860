"""The cost of each query and of each request with a thousand, a hundred thousand and a million rows."""

import contextlib
import itertools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from uuid import UUID

import models
from clients import drive, request
from kit.clock import SECOND
from kit.storage import Store
from ledger import DAY, DELETION
from models import FIRST
from programs import MIGRATIONS
from schemas import Status, Verdict
from stack import STATION, Stack
from traffic import POST

STATIONS = 4  # with transactions: few enough that a filtered page is full even with a thousand rows
ALL_STATIONS = 10_000  # a search reads them all
BATCH = 32  # rows in one write: what the ledger finds in its queue at 32 clients
SAMPLE = 100  # rows that are read by id, spread over the table
DEPTH = 10  # the deep page begins after all but a tenth of the rows
AGE = 10  # days; a service with RETENTION_DAYS=1 deletes the rows
TIMEOUTS = models.Timeouts(5 * SECOND, 60 * SECOND)

# One row per millisecond until AGE ago, in the order of the ids: 60 % confirmed, 38 % refused, 2 % expired.
# Every tenth row has an idempotency key. Rows that are created later are newer than all of these.
FILL = """
WITH RECURSIVE row(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM row WHERE number < :rows),
drawn AS (SELECT number, :now - (:rows - number + 1) * 1000 AS created, abs(random() % 100) AS lot FROM row)
INSERT INTO "transaction"
    (id, station_id, status, created, updated, idempotency_key, attempts, asked_at, expires_at)
SELECT printf('%012x7%03x8%s', created / 1000, abs(random() % 4096), lower(substr(hex(randomblob(8)), 2))),
    abs(random() % :stations) + 1,
    CASE WHEN lot < 60 THEN 'COMPLETED' WHEN lot < 98 THEN 'ERROR' ELSE 'EXPIRED' END,
    created, created + 3000,
    CASE WHEN number % 10 = 0 THEN 'key ' || number END, 1, created, created + 60000000
FROM drawn
"""


class Rows:
    """A database with `rows` settled transactions, and how long each operation took in it."""

    def __init__(self, folder: Path, rows: int):
        self.folder, self.times = folder, {}
        file = folder / "energy2go.db"
        folder.mkdir()
        self.store = self._opened()
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("BEGIN")
            database.executemany(
                "INSERT INTO station (description) VALUES (?)", [(f"{n}",) for n in range(ALL_STATIONS)]
            )
            database.execute(
                FILL, {"rows": rows, "stations": STATIONS, "now": time.time_ns() // 1000 - AGE * DAY}
            )
            database.execute("COMMIT")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            offset = 'SELECT id FROM "transaction" ORDER BY id LIMIT 1 OFFSET ?'
            places = [rows // DEPTH, *range(0, rows, rows // SAMPLE)]
            found = [UUID(database.execute(offset, (place,)).fetchone()[0]) for place in places]
        self.deep, self.some = found[0], itertools.cycle(found[1:])

    def _opened(self) -> Store:
        store = Store(f"sqlite:///{self.folder}/energy2go.db", 1, MIGRATIONS, models.TABLES)
        store.recover()
        assert not store.problem, store.problem
        return store

    @contextlib.contextmanager
    def _timed(self, name: str):
        began = time.perf_counter_ns()
        yield
        self.times.setdefault(name, []).append((time.perf_counter_ns() - began) / 1000)

    def _write(self, name: str, function: Callable, *arguments):
        """Time a function of `models` with its commit, and the commit alone."""
        with self._timed(name):
            with self.store.transaction():
                result = function(self.store.database, *arguments)
                began = time.perf_counter_ns()
            self.times.setdefault(f"{name}: commit", []).append((time.perf_counter_ns() - began) / 1000)
        return result

    def queries(self) -> None:
        """Time each query once in this process, as the ledger and the request threads run it."""
        now, database = time.time_ns() // 1000, self.store.database
        drafts = [models.Draft(STATION) for _ in range(BATCH)]
        self._write("create", models.create_transactions, drafts, now, now, TIMEOUTS, 0)
        asked = self._write("claim", models.claim, now, TIMEOUTS, BATCH, True)
        verdicts = [Verdict(question.transaction_id, "COMPLETED") for question, _ in asked]
        worth = self._write("settle", models.settle, verdicts, now, now)
        assert [settled.kind for settled in worth] == ["settled"] * BATCH, worth
        self._write("expire", models.expire, now, now)
        key = next(self.some)
        with self._timed("newest update"):
            models.newest_update(database)
        with self._timed("get"):
            models.get_transaction(database, key)
        with self._timed("first page"):
            models.list_transactions(database, 50)
        with self._timed("deep page"):
            models.list_transactions(database, 50, self.deep)
        with self._timed("filtered page"):
            models.list_transactions(database, 50, None, [Status.ERROR], STATION)
        with self._timed("search in 10,000 stations"):
            models.list_stations(database, 50, 0, f"{ALL_STATIONS - 1}")

    def requests(self, stack: Stack, repeats: int) -> None:
        """Time `repeats` requests of each kind to a service on these rows, one after the other."""
        self.store.close()
        for name, requests, status in (
            ("POST", [POST], 201),
            ("GET by id", (request("GET", f"/transactions/{next(self.some)}") for _ in range(repeats)), 200),
            ("GET first page", [request("GET", "/transactions")], 200),
            ("GET deep page", [request("GET", f"/transactions?after={self.deep}")], 200),
        ):
            sample = drive(stack.port, itertools.cycle(requests), 1, 60, status=status, most=repeats)
            self.times.setdefault(name, []).extend(took * 1000 for took in sample.milliseconds())
        stack.drain(30)

    def deletions(self, rounds: int) -> list[float]:
        """Delete old rows as the ledger does; returns how long each round took with its commit, in ms."""
        self.store = self._opened()  # the files are new since a service had them
        took, place = [], FIRST
        for _ in range(rounds):
            began = time.perf_counter_ns()
            with self.store.transaction():
                place = models.delete_finished(
                    self.store.database, time.time_ns() // 1000 - DAY, place, DELETION
                )
            took.append((time.perf_counter_ns() - began) / 1e6)
            if place == FIRST:  # none is left
                break
        self.store.close()
        return took

    def medians(self) -> dict[str, float]:
        """The median of each operation, in microseconds."""
        return {name: median(values) for name, values in self.times.items()}
