"""What clients read: single stations and transactions, and lists of them by filters, page by page.

A page begins where the last one ended, so each costs the same. No page of transactions scans the table: ids
are made from the time of creation, so a time range is a range of ids, and each filter has an index with it.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from uuid import UUID

from peewee import Database

from kit.clock import EPOCH, below, moment, stored
from kit.errors import NotFound
from kit.storage import contains, execute, placeholders
from schemas import Station, Status, Transaction

LATEST, LAST = datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1)
COLUMNS = """t.id, t.status, t.created, t.updated, t.attempts, t.asked_at, t.expires_at,
    station.id, station.description"""
WITH_STATION = "JOIN station ON station.id = t.station_id"


def get_station(database: Database, station_id: int) -> Station:
    """One station; raises NotFound."""
    for row in execute(database, "SELECT id, description FROM station WHERE id = ?", station_id):
        return Station(*row)
    raise NotFound(f"There is no station {station_id}.")


def list_stations(database: Database, limit: int, after: int = 0, q: str = "") -> list[Station]:
    """At most `limit` stations with an id above `after` and `q` in their description, newest last."""
    found = f"AND {contains(database, 'description')}" if q else ""
    statement = f"SELECT id, description FROM station WHERE id > ? {found} ORDER BY id LIMIT ?"
    return [Station(*row) for row in execute(database, statement, after, *([q] if q else []), limit)]


def get_transaction(database: Database, transaction_id: UUID) -> Transaction:
    """One transaction; raises NotFound."""
    statement = f'SELECT {COLUMNS} FROM "transaction" AS t {WITH_STATION} WHERE t.id = ?'
    for row in execute(database, statement, transaction_id.hex):
        return transaction(row)
    raise NotFound(f"There is no transaction {transaction_id}.")


def list_transactions(
    database: Database,
    limit: int,
    after: UUID | None = None,
    status: Sequence[Status] = (),
    station_id: int | None = None,
    created_from: datetime = EPOCH,
    created_to: datetime = LATEST,
) -> list[Transaction]:
    """At most `limit` transactions with an id below `after`, newest first; both ends of the time count."""
    first, last = stored(created_from), stored(created_to)
    ids = below(first), min(after or LAST, below(last + 1000))
    filters: list[tuple[str, Any]] = [] if station_id is None else [("station_id", station_id)]
    each = [[*filters, ("status", one.value)] for one in dict.fromkeys(status)] or [filters]
    parts = [newest(equal, *ids) for equal in each]
    union = " UNION ALL ".join(f"SELECT * FROM ({statement}) AS part" for statement, _ in parts)
    statement = f"SELECT {COLUMNS} FROM ({union}) AS t {WITH_STATION} ORDER BY t.id DESC LIMIT ?"
    values = chain.from_iterable((*values, first, last, limit) for _, values in parts)
    return [transaction(row) for row in execute(database, statement, *values, limit)]


def newest(equal: Sequence[tuple[str, Any]], lowest: UUID, bound: UUID) -> tuple[str, list[Any]]:
    """The SELECT of the newest rows with these values in these columns, and an id in this range.

    The last of these columns and the id are compared as a pair. For `status = ? AND id < ?` PostgreSQL may
    read the primary key, and skip all other rows on the way to that status. The pair is in one index only.
    """
    *others, (column, value) = equal or [("", None)]
    row, place, key = (f"({column}, id)", "(?, ?)", [value]) if column else ("id", "?", [])
    same = "".join(f"{name} = ? AND " for name, _ in others)
    order = f"{column} DESC, id DESC" if column else "id DESC"
    statement = f"""SELECT * FROM "transaction" WHERE {same} {row} >= {place} AND {row} < {place}
        AND created BETWEEN ? AND ? ORDER BY {order} LIMIT ?"""
    return statement, [*(value for _, value in others), *key, lowest.hex, *key, bound.hex]


def statuses(database: Database, transaction_ids: Collection[UUID]) -> dict[UUID, Status]:
    """The status of each of these transactions that exists."""
    if not transaction_ids:
        return {}
    statement = f'SELECT id, status FROM "transaction" WHERE id IN {placeholders(transaction_ids)}'
    rows = execute(database, statement, *(transaction_id.hex for transaction_id in transaction_ids))
    return {uuid(row_id): Status(status) for row_id, status in rows}


def transaction(row: Sequence[Any]) -> Transaction:
    """A row of COLUMNS as clients see it."""
    row_id, status, created, updated, attempts, asked_at, expires_at, *station = row
    settled = status in ("COMPLETED", "ERROR")
    return Transaction(
        uuid(row_id),
        Station(*station),
        Status(status),
        moment(created),
        moment(updated),
        attempts,
        None if asked_at is None else moment(asked_at),
        None if settled or expires_at is None else moment(expires_at),
    )


def uuid(found: str | UUID) -> UUID:
    """An id as the database returns it. SQLite knows no such type and stores 32 hexadecimal digits."""
    return found if isinstance(found, UUID) else UUID(found)
