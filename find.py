"""Lists of stations and transactions: what clients find by filters, page by page.

A page begins where the last one ended, so each costs the same. No page of transactions scans the table: ids
are made from the time of creation, so a time range is a range of ids, and each filter has an index with it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from peewee import Database

from kit.ids import EPOCH, below, stored
from kit.storage import contains, execute, placeholders
from models import COLUMNS, WITH_STATION, transaction
from schemas import Station, Status, Transaction

LATEST, LAST = datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1)


def list_stations(database: Database, limit: int, after: int = 0, q: str = "") -> list[Station]:
    """At most `limit` stations with an id above `after` and `q` in their description, newest last."""
    found = f"AND {contains(database, 'description')}" if q else ""
    statement = f"SELECT id, description FROM station WHERE id > ? {found} ORDER BY id LIMIT ?"
    return [Station(*row) for row in execute(database, statement, after, *([q] if q else []), limit)]


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
    station: dict[str, Any] = {} if station_id is None else {"station_id": station_id}
    filters = [station | {"status": one.value} for one in dict.fromkeys(status)] or [station]
    union = " UNION ALL ".join(f"SELECT * FROM ({newest([*equal, 'id'])}) AS part" for equal in filters)
    statement = f"SELECT {COLUMNS} FROM ({union}) AS t {WITH_STATION} ORDER BY t.id DESC LIMIT ?"
    values = list[Any]()
    for equal in filters:
        values += [*equal.values(), ids[0].hex, *equal.values(), ids[1].hex, first, last, limit]
    return [transaction(row) for row in execute(database, statement, *values, limit)]


def newest(columns: Sequence[str]) -> str:
    """The SELECT of the newest rows between two places in the index on these columns, the last of them `id`.

    For `status = ? AND id < ?` PostgreSQL may read the primary key instead, and skip all other rows on the
    way to that status.
    """
    row, place = f"({', '.join(columns)})", placeholders(columns)
    order = ", ".join(f"{column} DESC" for column in columns)
    return f"""SELECT * FROM "transaction" WHERE {row} >= {place} AND {row} < {place}
        AND created BETWEEN ? AND ? ORDER BY {order} LIMIT ?"""
