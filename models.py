"""The tables and every query on them. No other module writes SQL or changes a status.

Every query is SQL text: building it from Peewee expressions took ten times as long as executing it. Times
are whole microseconds since 1970 (UTC) and come from the caller. Only the ledger calls what changes a row.
"""

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from peewee import (
    AutoField,
    BigIntegerField,
    CharField,
    Database,
    ForeignKeyField,
    Model,
    SmallIntegerField,
    UUIDField,
)

from kit.clock import SECOND, moment, uuid7
from kit.errors import Conflict, NotFound, Refusal, Unprocessable
from kit.storage import execute, placeholders
from schemas import Question, Station, Status, Transaction, Verdict

LONGEST_BACKOFF = 30 * SECOND
WINDOW = 1000  # questions that are open at one time: asked, not answered, and their deadline set
CLAIM = 500  # rows that one claim takes at most


class StationTable(Model):
    id = AutoField()
    description = CharField(255)

    class Meta:
        table_name = "station"


class TransactionTable(Model):
    id = UUIDField(primary_key=True)
    station = ForeignKeyField(StationTable)
    status = CharField()
    created = BigIntegerField()
    updated = BigIntegerField()
    idempotency_key = CharField(null=True)
    attempts = SmallIntegerField()  # how often it was asked since its deadline last started
    asked_at = BigIntegerField(null=True)
    retry_at = BigIntegerField(null=True)  # null: not PENDING, nothing to ask
    expires_at = BigIntegerField(null=True)  # null: it waits to be asked, its clock does not run

    class Meta:
        table_name = "transaction"


TABLES: list[type[Model]] = [StationTable, TransactionTable]
# Each of these conditions has an index of its own. The planner finds it by these very words.
WAITING = "retry_at IS NOT NULL AND expires_at IS NULL"
OPEN = "retry_at IS NOT NULL AND expires_at > 0"


# Stations


def get_station(database: Database, station_id: int) -> Station:
    """One station; raises NotFound."""
    for row in execute(database, "SELECT id, description FROM station WHERE id = ?", station_id):
        return Station(*row)
    raise NotFound(f"There is no station {station_id}.")


def list_stations(database: Database, limit: int, after: int) -> list[Station]:
    """At most `limit` stations with an id above `after`, newest last."""
    rows = execute(
        database, "SELECT id, description FROM station WHERE id > ? ORDER BY id LIMIT ?", after, limit
    )
    return [Station(*row) for row in rows]


def create_station(database: Database, description: str) -> Station:
    """The new station, with its id."""
    ((station_id,),) = execute(
        database, "INSERT INTO station (description) VALUES (?) RETURNING id", description
    )
    return Station(station_id, description)


def change_station(database: Database, station_id: int, description: str) -> Station:
    """The station as it is now; raises NotFound."""
    execute(database, "UPDATE station SET description = ? WHERE id = ?", description, station_id)
    return get_station(database, station_id)


def delete_station(database: Database, station_id: int) -> None:
    """Delete a station; raises NotFound, or Conflict while it has transactions."""
    get_station(database, station_id)
    if execute(database, 'SELECT 1 FROM "transaction" WHERE station_id = ? LIMIT 1', station_id):
        raise Conflict(f"Station {station_id} has transactions, so it cannot be deleted.")
    execute(database, "DELETE FROM station WHERE id = ?", station_id)


# Transactions

SELECT = """SELECT t.id, t.status, t.created, t.updated, station.id, station.description
    FROM "transaction" AS t JOIN station ON station.id = t.station_id"""


def get_transaction(database: Database, transaction_id: UUID) -> Transaction:
    """One transaction; raises NotFound."""
    for row in execute(database, f"{SELECT} WHERE t.id = ?", transaction_id.hex):
        return _transaction(row)
    raise NotFound(f"There is no transaction {transaction_id}.")


def list_transactions(
    database: Database,
    limit: int,
    after: UUID | None = None,
    status: Status | None = None,
    station_id: int | None = None,
) -> list[Transaction]:
    """At most `limit` transactions with an id below `after`, newest first."""
    conditions, values = ["1 = 1"], list[Any]()
    for condition, value in (
        ("t.id < ?", after and after.hex),
        ("t.status = ?", status and status.value),
        ("t.station_id = ?", station_id),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    statement = f"{SELECT} WHERE {' AND '.join(conditions)} ORDER BY t.id DESC LIMIT ?"
    return [_transaction(row) for row in execute(database, statement, *values, limit)]


def statuses(database: Database, transaction_ids: Collection[UUID]) -> dict[UUID, Status]:
    """The status of each of these transactions that exists."""
    if not transaction_ids:
        return {}
    statement = f'SELECT id, status FROM "transaction" WHERE id IN {placeholders(transaction_ids)}'
    rows = execute(database, statement, *(transaction_id.hex for transaction_id in transaction_ids))
    return {_uuid(row_id): Status(status) for row_id, status in rows}


def oldest_pending(database: Database) -> int | None:
    """When the oldest PENDING transaction was created, or None."""
    rows = execute(
        database, """SELECT created FROM "transaction" WHERE status = 'PENDING' ORDER BY id LIMIT 1"""
    )
    return rows[0][0] if rows else None


def newest_update(database: Database) -> int:
    """The newest `updated` of all transactions; 0 if there are none."""
    return execute(database, 'SELECT max(updated) FROM "transaction"')[0][0] or 0


def _transaction(row: Sequence[Any]) -> Transaction:
    row_id, status, created, updated, *station = row
    return Transaction(_uuid(row_id), Station(*station), Status(status), moment(created), moment(updated))


def _uuid(stored: str | UUID) -> UUID:
    """An id as the database returns it. SQLite knows no such type and stores 32 hexadecimal digits."""
    return stored if isinstance(stored, UUID) else UUID(stored)


# What the ledger does


class Timeouts(NamedTuple):
    """VALIDATION_RETRY and VALIDATION_TIMEOUT, in microseconds."""

    retry: int
    timeout: int


class Draft:
    """A transaction to be stored. When it is first written it gets its id and its creation time for good."""

    def __init__(self, station_id: int, idempotency_key: str | None = None):
        self.station_id, self.idempotency_key = station_id, idempotency_key
        self.id = UUID(int=0)
        self.created = 0


Asked = tuple[Question, int]  # and in how many microseconds it will be asked again


def create_transactions(
    database: Database, drafts: Sequence[Draft], now: int, clock: int, timeouts: Timeouts, room: int
) -> tuple[list[Transaction | Refusal], list[Asked]]:
    """Store each draft as PENDING, the first `room` of them as asked.

    Returns an answer for each draft (the transaction, or why there is none) and the questions to publish
    after the commit. A draft whose idempotency key was used before, for the same station, gets the first
    answer again. A draft that is stored already, after a commit that was in doubt, stays as it is.
    """
    for counter, draft in enumerate(drafts):
        if not draft.created:
            draft.id, draft.created = uuid7(now, counter), now
    stations = _stations(database, {draft.station_id for draft in drafts})
    valid = [draft for draft in drafts if draft.station_id in stations]
    _insert(database, now, valid[:room], (1, clock, clock + timeouts.retry, clock + timeouts.timeout))
    _insert(database, now, valid[room:], (0, None, clock, None))
    keys = _keys(database, {draft.idempotency_key for draft in valid} - {None})

    def answer(draft: Draft) -> Transaction | Refusal:
        if draft.station_id not in stations:
            return Unprocessable(f"body.station_id: There is no station {draft.station_id}.")
        stored = keys.get(draft.idempotency_key, (draft.id, draft.station_id, draft.created))
        row_id, station_id, created = stored
        if station_id != draft.station_id:
            return Unprocessable(f"Idempotency-Key: was used before, for station {station_id}.")
        if row_id == draft.id and created < now:  # written again: `updated` is now, or it was stored before
            return get_transaction(database, row_id)
        return Transaction(row_id, stations[station_id], Status.PENDING, moment(created), moment(created))

    answers = [answer(draft) for draft in drafts]
    new = {answer.id for answer in answers if isinstance(answer, Transaction)}
    asked = [Question(draft.id, draft.station_id) for draft in valid[:room] if draft.id in new]
    return answers, [(question, timeouts.retry) for question in asked]


def _stations(database: Database, station_ids: Collection[int]) -> dict[int, Station]:
    """Those of these stations that exist."""
    statement = f"SELECT id, description FROM station WHERE id IN {placeholders(station_ids)}"
    return {row[0]: Station(*row) for row in execute(database, statement, *station_ids)}


def _insert(database: Database, now: int, drafts: Sequence[Draft], asked: tuple[int | None, ...]) -> None:
    """Store these as PENDING; `asked` is their attempts, asked_at, retry_at and expires_at."""
    if drafts:
        rows = [(d.id.hex, d.station_id, d.idempotency_key, d.created, now, *asked) for d in drafts]
        statement = f"""INSERT INTO "transaction" (id, station_id, idempotency_key, created, updated,
            attempts, asked_at, retry_at, expires_at, status)
            VALUES {", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, 'PENDING')"] * len(rows))}
            ON CONFLICT DO NOTHING"""
        execute(database, statement, *chain.from_iterable(rows))


def _keys(database: Database, keys: Collection[str | None]) -> dict[str | None, tuple[UUID, int, int]]:
    """By idempotency key: id, station and creation of the transaction that was stored with it."""
    if not keys:
        return {}
    statement = f"""SELECT idempotency_key, id, station_id, created FROM "transaction"
        WHERE idempotency_key IN {placeholders(keys)}"""
    return {key: (_uuid(row_id), *rest) for key, row_id, *rest in execute(database, statement, *keys)}


class Settled(NamedTuple):
    """What a verdict was worth; if it was stored, also how many microseconds after the question it came."""

    kind: str  # settled, late, duplicate, contradiction or unknown
    delay: int | None = None


def settle(database: Database, verdicts: Sequence[Verdict], now: int, clock: int) -> list[Settled]:
    """Store the first verdict of each transaction that has none; says of each verdict what it was worth."""
    first = {verdict.transaction_id: verdict.status for verdict in reversed(verdicts)}
    changed = {}
    for status in ("COMPLETED", "ERROR"):
        if ids := [row_id.hex for row_id, verdict in first.items() if verdict == status]:
            statement = f"""UPDATE "transaction" SET status = ?, updated = ?, retry_at = NULL
                WHERE id IN {placeholders(ids)} AND status IN ('PENDING', 'EXPIRED')
                RETURNING id, expires_at, asked_at"""
            for row_id, deadline, asked_at in execute(database, statement, status, now, *ids):
                kind = "late" if deadline and deadline <= clock else "settled"
                changed[_uuid(row_id)] = Settled(
                    kind, None if asked_at is None else max(0, clock - asked_at)
                )
    repeated = len(first) < len(verdicts)
    others = statuses(database, [row_id for row_id in first if repeated or row_id not in changed])

    def worth(verdict: Verdict) -> Settled:
        if verdict.transaction_id in changed:
            return changed.pop(verdict.transaction_id)
        stored = others.get(verdict.transaction_id)
        return Settled(
            "unknown" if not stored else "duplicate" if stored == verdict.status else "contradiction"
        )

    return [worth(verdict) for verdict in verdicts]


def hold(database: Database, clock: int, timeouts: Timeouts, transaction_ids: Collection[UUID]) -> None:
    """Do not ask again what the broker has not taken yet; if it is asked first, start its clock anew."""
    if transaction_ids:
        statement = f"""UPDATE "transaction" SET retry_at = ?,
            expires_at = CASE WHEN attempts = 1 THEN ? ELSE expires_at END
            WHERE id IN {placeholders(transaction_ids)} AND {OPEN}"""
        ids = [transaction_id.hex for transaction_id in transaction_ids]
        execute(database, statement, clock + timeouts.retry, clock + timeouts.timeout, *ids)


def expire(database: Database, now: int, clock: int) -> list[UUID]:
    """Make every question EXPIRED whose deadline has passed; returns the ids."""
    statement = f"""UPDATE "transaction" SET status = 'EXPIRED', updated = ?, retry_at = NULL
        WHERE {OPEN} AND expires_at <= ? RETURNING id"""
    return [_uuid(row_id) for (row_id,) in execute(database, statement, now, clock)]


def room(database: Database) -> int:
    """How many more questions may be opened now."""
    statement = f'SELECT count(*) FROM (SELECT 1 FROM "transaction" WHERE {OPEN} LIMIT ?) AS opened'
    return WINDOW - int(execute(database, statement, WINDOW)[0][0])


def claim(
    database: Database, clock: int, timeouts: Timeouts, limit: int, waiting: bool = False
) -> list[Asked]:
    """Mark at most `limit` questions that are due as asked now; returns them, to publish after the commit.

    Takes open questions, to be asked again with a backoff that doubles. With `waiting`, it takes those that
    wait to be asked first, and starts their clock.
    """
    # How often VALIDATION_RETRY doubles until it is longer than the longest backoff.
    # MATERIALIZED: PostgreSQL might otherwise run the subquery once per row, and take more than the limit.
    doublings = (LONGEST_BACKOFF // timeouts.retry).bit_length()
    rows = execute(
        database,
        f"""WITH due AS MATERIALIZED (
            SELECT id FROM "transaction" WHERE {WAITING if waiting else OPEN} AND retry_at <= ?
            ORDER BY retry_at LIMIT ?
        )
        UPDATE "transaction" SET attempts = attempts + 1, asked_at = ?, expires_at = coalesce(expires_at, ?),
            retry_at = ? + CASE WHEN attempts < ? THEN ? << attempts ELSE ? END
        WHERE id IN (SELECT id FROM due) RETURNING id, station_id, retry_at""",
        *(clock, limit, clock, clock + timeouts.timeout, clock, doublings, timeouts.retry, LONGEST_BACKOFF),
    )
    return [(Question(_uuid(row_id), station_id), retry_at - clock) for row_id, station_id, retry_at in rows]


def ask_again(database: Database, clock: int, restart: bool) -> None:
    """Make every open question due one second after it was last asked; with `restart`, clear its deadline.

    What is due further ahead than that, as after a step of the wall clock and a restart, becomes due now.
    """
    cleared = "attempts = 0, expires_at = NULL," if restart else ""
    statement = f"""UPDATE "transaction" SET {cleared}
        retry_at = CASE WHEN asked_at BETWEEN ? AND ? THEN asked_at + ? ELSE ? END WHERE {OPEN}"""
    execute(database, statement, clock - SECOND, clock, SECOND, clock)
    statement = f'UPDATE "transaction" SET retry_at = ? WHERE {WAITING} AND retry_at > ?'
    execute(database, statement, clock, clock + SECOND)
