"""A database with a million old transactions: how long lists take, and posts while the service deletes."""

import contextlib
import itertools
import sqlite3
import time
from pathlib import Path
from uuid import UUID

from clients import drive, request
from kit.storage import Store
from ledger import DAY
from programs import MIGRATIONS
from stack import STATION, Stack, step
from traffic import Phase, measure, reads, spread

ROWS = 1_000_000
STATIONS = 10_000  # a search reads them all
USED = 4  # of them have transactions
AGE = 10  # days; a service with RETENTION_DAYS=1 deletes the rows

# One row per millisecond until AGE ago, in the order of the ids: 60 % confirmed, 38 % refused, 2 % expired.
FILL = """
WITH RECURSIVE row(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM row WHERE number < :rows),
drawn AS (SELECT :now - (:rows - number + 1) * 1000 AS created, abs(random() % 100) AS lot FROM row)
INSERT INTO "transaction" (id, station_id, status, created, updated, attempts, asked_at, expires_at)
SELECT printf('%012x7%03x8%s', created / 1000, abs(random() % 4096), lower(substr(hex(randomblob(8)), 2))),
    abs(random() % :stations) + 1,
    CASE WHEN lot < 60 THEN 'COMPLETED' WHEN lot < 98 THEN 'ERROR' ELSE 'EXPIRED' END,
    created, created + 3000, 1, created, created + 60000000
FROM drawn
"""


def fill(folder: Path) -> None:
    """Make a database with settled transactions."""
    folder.mkdir()
    store = Store(f"sqlite:///{folder}/energy2go.db", 1, MIGRATIONS)
    store.recover()
    store.close()
    stations = [(f"{number}", f"{number}") for number in range(STATIONS)]
    values = {"rows": ROWS, "stations": USED, "now": time.time_ns() // 1000 - AGE * DAY}
    with contextlib.closing(sqlite3.connect(folder / "energy2go.db")) as database, database:
        database.executemany("INSERT INTO station (description, folded) VALUES (?, ?)", stations)
        database.execute(FILL, values)


def million(folder: Path) -> dict[str, dict[str, float]]:
    """The times of each request of a single client, in milliseconds; the last is that of posts."""
    step(f"making {ROWS:,} rows")
    fill(folder)
    with contextlib.ExitStack() as ends:
        stack, lists = Stack(folder, ends), "/transactions"
        deep = stack.query('SELECT id FROM "transaction" ORDER BY id LIMIT 1 OFFSET ?', ROWS // 10)[0][0]
        after = UUID(deep)  # all but a tenth of the rows come before it
        requests = {
            "GET by id": reads(stack),
            "GET first page": [request("GET", lists)],
            "GET deep page": [request("GET", f"{lists}?after={after}")],
            "GET filtered page": [request("GET", f"{lists}?status=ERROR,EXPIRED&station_id={STATION}")],
            "search in 10,000 stations": [request("GET", f"/stations?q={STATIONS - 1}")],
        }
        step("reading them")
        found = {
            name: spread(drive(stack.port, itertools.cycle(each), 1, 1, status=200).milliseconds())
            for name, each in requests.items()
        }
    step("deleting them")
    with contextlib.ExitStack() as ends:
        stack = Stack(folder, ends, RETENTION_DAYS="1")
        return found | {"POST while the rows are deleted": measure(Phase("", 5, 1), stack)["ms"]}
