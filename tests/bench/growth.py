"""The time of each kind of request with a thousand, a hundred thousand and a million transactions."""

import contextlib
import itertools
import sqlite3
import time
from pathlib import Path
from statistics import median
from uuid import UUID

import models
from clients import drive, request
from kit.storage import Store
from ledger import DAY
from programs import MIGRATIONS
from progress import step
from stack import STATION, Stack
from traffic import BODY, POST, Phase, measure, reads

STATIONS = 4  # with transactions: few enough that a filtered page is full even with a thousand rows
ALL_STATIONS = 10_000  # a search reads them all
DEPTH = 10  # the deep page begins after all but a tenth of the rows
AGE = 10  # days; a service with RETENTION_DAYS=1 deletes the rows
REPEATS = 10  # of each request, before it is the next size's turn
DELETING = Phase("", 5, rate=100)

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


def fill(folder: Path, rows: int) -> None:
    """Make a database with so many settled transactions."""
    folder.mkdir()
    store = Store(f"sqlite:///{folder}/energy2go.db", 1, MIGRATIONS, models.TABLES)
    store.recover()
    store.close()
    stations = [(f"{number}", f"{number}") for number in range(ALL_STATIONS)]
    values = {"rows": rows, "stations": STATIONS, "now": time.time_ns() // 1000 - AGE * DAY}
    with contextlib.closing(sqlite3.connect(folder / "energy2go.db")) as database, database:
        database.executemany("INSERT INTO station (description, folded) VALUES (?, ?)", stations)
        database.execute(FILL, values)


class Service:
    """A service with so many transactions, and how long each request took, in milliseconds."""

    def __init__(self, folder: Path, rows: int, ends: contextlib.ExitStack):
        fill(folder, rows)
        self.stack = Stack(folder, ends)
        offset = 'SELECT id FROM "transaction" ORDER BY id LIMIT 1 OFFSET ?'
        deep, paths = UUID(self.stack.query(offset, rows // DEPTH)[0][0]), "/transactions"
        wait = request("POST", paths, BODY, Prefer="wait=10")
        requests = {
            "POST": [POST],
            "POST, until the verdict": [wait],
            "GET by id": reads(self.stack),
            "GET first page": [request("GET", paths)],
            "GET deep page": [request("GET", f"{paths}?after={deep}")],
            "GET filtered page": [request("GET", f"{paths}?status=ERROR,EXPIRED&station_id={STATION}")],
            "search in 10,000 stations": [request("GET", f"/stations?q={ALL_STATIONS - 1}")],
        }
        self.requests = {name: itertools.cycle(each) for name, each in requests.items()}
        self.times = {name: [] for name in self.requests}

    def measure(self) -> None:
        """Send REPEATS requests of each kind, one after the other."""
        for name, requests in self.requests.items():
            status = 201 if name.startswith("POST") else 200
            sample = drive(self.stack.port, requests, 1, 60, status=status, most=REPEATS)
            self.times[name] += sample.milliseconds()
            self.stack.drain(30)


def grow(folder: Path, sizes: tuple[int, ...], rounds: int) -> dict[int, dict[str, float]]:
    """The median time of each request with each number of rows, in milliseconds. The sizes take turns."""
    with contextlib.ExitStack() as ends:
        services = {}
        for rows in sizes:
            step(f"making {rows:,} rows")
            services[rows] = Service(folder / f"{rows}", rows, ends)
        step("requests with each number of rows")
        for _ in range(rounds):
            for service in services.values():
                service.measure()
        return {
            rows: {name: median(times) for name, times in service.times.items()}
            for rows, service in services.items()
        }


def deleting(folder: Path, speed: float) -> dict[str, float]:
    """The times of posts while the service deletes the old rows of a database, in milliseconds."""
    step("deleting old rows")
    with contextlib.ExitStack() as ends:
        stack = Stack(folder, ends, RETENTION_DAYS="1")
        return measure(DELETING._replace(seconds=DELETING.seconds / speed), stack)["ms"]
