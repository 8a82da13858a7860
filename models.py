"""Every query on the tables that `migrations/` makes. No other module writes SQL or changes a status.

Every query is SQL text: building it from Peewee expressions took ten times longer than executing it. Times
are whole microseconds since 1970 (UTC) and come from the caller. Only the ledger changes rows.
"""

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import Any, NamedTuple
from unicodedata import normalize
from uuid import UUID

from peewee import Database

import schemas
from kit.clock import EPOCH, SECOND, below, microseconds, moment, uuid7
from kit.errors import Locked, NotFound, Refusal
from kit.sql import execute, is_postgresql, newest, placeholders, uuid
from schemas import Question, Station, Status, Transaction, Verdict

LONGEST_BACKOFF = 30 * SECOND
WINDOW = 1000  # questions that are open at one time: asked, not answered, and their deadline set
CLAIM = 500  # rows that one claim takes at most
MOST = 1000  # attempts are counted up to here, far below the column's limit
NOTHING = "nothing was stored"
Cursor = tuple[int, UUID]  # a change: its time in microseconds, and the transaction's id
FIRST: Cursor = (0, UUID(int=0))
LATEST, LAST = datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1)
# Each condition has its own index. The planner finds it by these very words.
WAITING = "retry_at IS NOT NULL AND expires_at IS NULL"
OPEN = "retry_at IS NOT NULL AND expires_at > 0"


# Stations


def fold(text: str) -> str:
    """A text as it is searched: without letter case, and however its letters were typed."""
    # The upper case of a dotless i is I. İ is an I with a dot above; an i has that dot already.
    folded = normalize("NFKD", text).upper().casefold().replace("i\u0307", "i")
    return normalize("NFKC", folded)


def get_station(database: Database, station_id: int) -> Station:
    """One station; raises NotFound."""
    for row in execute(database, "SELECT id, description FROM station WHERE id = ?", station_id):
        return Station(*row)
    raise NotFound(f"There is no station {station_id}.")


def list_stations(database: Database, limit: int, after: int = 0, q: str = "") -> list[Station]:
    """At most `limit` stations with an id above `after` and `q` in their description, newest last."""
    found, values = "", []
    if q:  # release 1.1 leaves `folded` null
        found = "AND coalesce(folded, lower(description)) LIKE ? ESCAPE '!'"
        values = ["%" + re.sub("([%_!])", r"!\1", fold(q)) + "%"]
    statement = f"SELECT id, description FROM station WHERE id > ? {found} ORDER BY id LIMIT ?"
    return [Station(*row) for row in execute(database, statement, after, *values, limit)]


def create_station(database: Database, description: str) -> Station:
    """The new station, with its id; raises NoMoreIds if all ids have been given out."""
    end = f"Station ids end at {schemas.LARGEST_ID} and all have been used, so nothing was stored."
    # An error from PostgreSQL's sequence would end the database transaction. SQLite has larger ids.
    sequence = "SELECT 1 FROM station_id_seq WHERE last_value + is_called::int > ?"
    if is_postgresql(database) and execute(database, sequence, schemas.LARGEST_ID):
        raise schemas.NoMoreIds(end)
    statement = "INSERT INTO station (description, folded) VALUES (?, ?) RETURNING id"
    ((station_id,),) = execute(database, statement, description, fold(description))
    if station_id > schemas.LARGEST_ID:
        execute(database, "DELETE FROM station WHERE id = ?", station_id)
        raise schemas.NoMoreIds(end)
    return Station(station_id, description)


def change_station(
    database: Database, station_id: int, description: str | None, if_match: str | None = None
) -> Station:
    """The station as it is now; raises NotFound, or PreconditionFailed if its tag isn't among these."""
    station = get_station(database, station_id)
    station.require(if_match)
    if description is None:
        return station
    values = description, fold(description), station_id
    execute(database, "UPDATE station SET description = ?, folded = ? WHERE id = ?", *values)
    return Station(station_id, description)


def delete_station(database: Database, station_id: int, if_match: str | None = None) -> None:
    """Delete a station; raises NotFound, PreconditionFailed or HasTransactions."""
    station = get_station(database, station_id)
    if execute(database, 'SELECT 1 FROM "transaction" WHERE station_id = ? LIMIT 1', station_id):
        raise schemas.HasTransactions(f"Station {station_id} has transactions, so it cannot be deleted.")
    station.require(if_match)  # last (RFC 9110, section 13.2.1)
    execute(database, "DELETE FROM station WHERE id = ?", station_id)


# Transactions

COLUMNS = """t.id, t.status, t.created, t.updated, t.attempts, t.asked_at, t.expires_at,
    t.reason, t.equipment, station.id, station.description"""
WITH_STATION = "JOIN station ON station.id = t.station_id"


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
    idempotency_key: str = "",
) -> list[Transaction]:
    """At most `limit` transactions with an id below `after`, newest first; both times are inclusive."""
    first, last = microseconds(created_from), microseconds(created_to)
    ids = below(first), min(after or LAST, below(last + 1000))
    filters: list[tuple[str, Any]] = [] if station_id is None else [("station_id", station_id)]
    wanted = dict.fromkeys(status or (Status if idempotency_key else ()))
    each = [[*filters, ("status", one.value)] for one in wanted] or [filters]
    if idempotency_key:  # a header's UTF-8 was stored as Latin-1, so look for both
        keys = {idempotency_key, idempotency_key.encode().decode("latin1")}
        each = [[("idempotency_key", key), *equal] for equal in each for key in keys]
    parts = [newest('"transaction"', equal, *ids) for equal in each]
    union = " UNION ALL ".join(f"SELECT * FROM ({statement}) AS part" for statement, _ in parts)
    statement = f"SELECT {COLUMNS} FROM ({union}) AS t {WITH_STATION} ORDER BY t.id DESC LIMIT ?"
    values = chain.from_iterable((*values, first, last, limit) for _, values in parts)
    return [transaction(row) for row in execute(database, statement, *values, limit)]


def latest_transactions(database: Database, station_ids: Sequence[int]) -> list[Transaction]:
    """The newest transaction of each of these stations that has one, ordered by station."""
    newest = f"""SELECT (SELECT id FROM "transaction" WHERE station_id = one.id ORDER BY id DESC LIMIT 1)
        FROM station AS one WHERE one.id IN {placeholders(station_ids)}"""
    statement = f"""SELECT {COLUMNS} FROM "transaction" AS t {WITH_STATION}
        WHERE t.id IN ({newest}) ORDER BY station.id"""
    return [transaction(row) for row in execute(database, statement, *station_ids)]


def count_transactions(
    database: Database, begin: int, end: int, step: int, station_id: int | None = None
) -> list[schemas.Count]:
    """How many transactions that were created in each step have each status now; to the millisecond."""
    times = [*range(begin, end, step), end]
    column = f"CAST(? AS {'uuid' if is_postgresql(database) else 'text'})"
    steps = ", ".join([f"({column}, {column})"] * (len(times) - 1))
    # Index ranges, since ids are made from `created`.
    condition = "status = '{}' AND id >= first AND id < after" + " AND station_id = ?" * bool(station_id)
    counts = [f'(SELECT count(*) FROM "transaction" WHERE {condition.format(status)})' for status in Status]
    statement = (
        f"WITH step (first, after) AS (VALUES {steps}) SELECT {', '.join(counts)} FROM step ORDER BY first"
    )
    ids = [below(time).hex for time in times]
    values = [*chain(*pairwise(ids)), *[station_id] * len(counts) * bool(station_id)]
    rows = execute(database, statement, *values)
    return [schemas.Count(moment(time), *row) for time, row in zip(times, rows, strict=False)]


def pending(database: Database) -> tuple[int, int | None]:
    """How many transactions are PENDING, and when the oldest was created."""
    those = """FROM "transaction" WHERE status = 'PENDING'"""
    statement = f"SELECT count(*), (SELECT created {those} ORDER BY id LIMIT 1) {those}"
    ((count, oldest),) = execute(database, statement)
    return count, oldest


def latest(database: Database) -> int:
    """The highest `updated` that there ever was, though retention may have deleted its row."""
    statement = 'SELECT max(updated), (SELECT deleted FROM retention) FROM "transaction"'
    return max(time or 0 for time in execute(database, statement)[0])


def known_changes(database: Database) -> tuple[Cursor, Cursor]:
    """A client can resume between these cursors: the last deleted change (or FIRST), and the newest one."""
    deleted = execute(database, "SELECT deleted, deleted_id FROM retention WHERE id = 1")
    newest = execute(
        database, 'SELECT updated, id FROM "transaction" ORDER BY updated DESC, id DESC LIMIT 1'
    )
    cursors = [FIRST, *((updated, uuid(row_id)) for updated, row_id in (*deleted, *newest))]
    return max(cursors[: 1 + len(deleted)]), max(cursors)


def changes(
    database: Database, after: Cursor, limit: int, station_id: int | None = None
) -> list[Transaction]:
    """At most `limit` transactions whose status changed after a cursor, in the order of their changes."""
    values = [after[0], after[1].hex]
    order, first, last = "t.updated, t.id", "?, ?", ""
    if station_id:
        # A range of all three columns: PostgreSQL would take the index without the station if it is busy.
        order, first, last = f"t.station_id, {order}", "?, ?, ?", "AND t.station_id <= ?"
        values = [station_id, *values, station_id]
    statement = f"""SELECT {COLUMNS} FROM "transaction" AS t {WITH_STATION}
        WHERE ({order}) > ({first}) {last} ORDER BY {order} LIMIT ?"""
    return [transaction(row) for row in execute(database, statement, *values, limit)]


def next_changes(
    database: Database, after: Cursor, limit: int, station_id: int | None = None
) -> tuple[list[Transaction], Cursor]:
    """The same, and the cursor of the last deleted change: if that is above `after`, some may be missing."""
    return changes(database, after, limit, station_id), known_changes(database)[0]


def cursor(transaction: Transaction) -> Cursor:
    """The cursor for a transaction's last change."""
    return microseconds(transaction.updated), transaction.id


def transaction(row: Sequence[Any]) -> Transaction:
    """A row of COLUMNS as clients see it."""
    row_id, status, created, updated, attempts, asked_at, expires_at, reason, equipment, *station = row
    settled = status in ("COMPLETED", "ERROR")
    asked = None if asked_at is None else moment(asked_at)
    expires = None if settled or expires_at is None else moment(expires_at)
    about = uuid(row_id), Station(*station), Status(status), moment(created), moment(updated)
    return Transaction(*about, attempts, asked, expires, reason, equipment)


# Changes, for the ledger


class Timeouts(NamedTuple):
    """VALIDATION_RETRY, VALIDATION_TIMEOUT and RETENTION_DAYS, in microseconds."""

    retry: int
    timeout: int
    retention: int = 0  # keep everything


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
    after the commit. A draft whose idempotency key was used before, for the same station, gets that
    transaction as it is now. A draft that is stored already, after a commit in doubt, stays as it is.
    """
    for counter, draft in enumerate(drafts):
        if not draft.created:
            draft.id, draft.created = uuid7(now, counter), now
    stations, locked = _stations(database, {draft.station_id for draft in drafts})
    valid = [draft for draft in drafts if draft.station_id in stations]
    asked = 1, clock, clock + timeouts.timeout, clock + timeouts.retry
    waiting = 0, None, None, clock  # attempts, asked_at, expires_at, retry_at
    schedules = {draft: asked if place < room else waiting for place, draft in enumerate(valid)}
    _insert(database, now, schedules)
    keys = _by(database, "idempotency_key", {draft.idempotency_key for draft in valid} - {None})

    def answer(draft: Draft) -> Transaction | Refusal:
        if draft.station_id in locked:
            return Locked(f"Station {draft.station_id} is locked by another database session; {NOTHING}.")
        if draft.station_id not in stations:
            return schemas.NoStation(f"body.station_id: There is no station {draft.station_id}.")
        if stored := keys.get(draft.idempotency_key):
            used = f"Idempotency-Key: was used before, for station {stored.station.id}."
            return stored if stored.station.id == draft.station_id else schemas.KeyUsed(used)
        if draft.created < now:  # written again
            return get_transaction(database, draft.id)
        *schedule, _ = schedules[draft]
        station = stations[draft.station_id]
        row = draft.id, "PENDING", draft.created, now, *schedule, None, None, station.id, station.description
        return transaction(row)

    answers = [answer(draft) for draft in drafts]
    new = {answer.id for answer in answers if isinstance(answer, Transaction)}
    questions = [Question(draft.id, draft.station_id) for draft in valid[:room] if draft.id in new]
    return answers, [(question, timeouts.retry) for question in questions]


def _stations(database: Database, ids: Collection[int]) -> tuple[dict[int, Station], set[int]]:
    """The stations that exist, and the ids that another session has locked."""
    statement = f"SELECT id, description FROM station WHERE id IN {placeholders(ids)}"
    # The foreign key takes this lock too, but it would wait for it.
    free = statement + " FOR KEY SHARE SKIP LOCKED" if is_postgresql(database) else statement
    stations = {row[0]: Station(*row) for row in execute(database, free, *ids)}
    missing = len(stations) < len(ids) and is_postgresql(database)
    there = {row[0] for row in execute(database, statement, *ids)} if missing else set()
    return stations, there - stations.keys()


def _insert(database: Database, now: int, drafts: dict[Draft, tuple[Any, ...]]) -> None:
    """Store these as PENDING, each with its schedule."""
    if drafts:
        rows = [(d.id.hex, d.station_id, d.idempotency_key, d.created, now, *drafts[d]) for d in drafts]
        statement = f"""INSERT INTO "transaction" (id, station_id, idempotency_key, created, updated,
            attempts, asked_at, expires_at, retry_at, status)
            VALUES {", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, 'PENDING')"] * len(rows))}
            ON CONFLICT DO NOTHING"""
        execute(database, statement, *chain.from_iterable(rows))


def _by(database: Database, column: str, values: Collection[Any]) -> dict[Any, Transaction]:
    """The transactions that have one of these values in a unique column, by the value."""
    if not values:
        return {}
    statement = f"""SELECT t.{column}, {COLUMNS} FROM "transaction" AS t {WITH_STATION}
        WHERE t.{column} IN {placeholders(values)}"""
    rows = execute(database, statement, *values)
    return {uuid(value) if column == "id" else value: transaction(row) for value, *row in rows}


def retry(
    database: Database, transaction_ids: Sequence[UUID], now: int, clock: int, timeouts: Timeouts, room: int
) -> tuple[list[Transaction | Refusal], list[Asked]]:
    """Make each of these that is EXPIRED PENDING again, and ask about at most `room` that wait.

    Returns an answer for each id, as `create_transactions` does. A second retry in the batch is refused.
    """
    ids = {transaction_id.hex for transaction_id in transaction_ids}
    free = unlocked(database, f"id IN {placeholders(ids)} AND status = 'EXPIRED'")
    statement = f"""UPDATE "transaction" SET status = 'PENDING', updated = ?, attempts = 0, asked_at = NULL,
        retry_at = ?, expires_at = NULL WHERE {free} RETURNING id"""
    reopened = {uuid(row_id) for (row_id,) in execute(database, statement, now, clock, *ids)}
    questions = claim(database, clock, timeouts, room, waiting=True) if reopened else []
    found = _by(database, "id", ids)

    def answer(transaction_id: UUID) -> Transaction | Refusal:
        if transaction_id not in found:
            return NotFound(f"There is no transaction {transaction_id}.")
        status = found[transaction_id].status
        if transaction_id in reopened:
            reopened.remove(transaction_id)
            return found[transaction_id]
        if status is Status.EXPIRED:
            return Locked(f"Transaction {transaction_id} is locked by another database session; {NOTHING}.")
        why = f"Transaction {transaction_id} is {status}; only an EXPIRED one can be retried."
        return schemas.NotExpired(why)

    return [answer(transaction_id) for transaction_id in transaction_ids], questions


def unlocked(database: Database, condition: str) -> str:
    """The same condition, without rows that another session has locked, so that no UPDATE waits for one."""
    if is_postgresql(database):
        return f'id = ANY(ARRAY(SELECT id FROM "transaction" WHERE {condition} FOR UPDATE SKIP LOCKED))'
    return condition  # SQLite has one lock for all


class Settled(NamedTuple):
    """A verdict's outcome, and its delay in microseconds if it was stored."""

    kind: str  # settled, late, duplicate, contradiction, unknown, or locked: try again
    delay: int | None = None


LOCKED = Settled("locked")


def settle(database: Database, verdicts: Sequence[Verdict], now: int, clock: int) -> list[Settled]:
    """Store the first verdict on each transaction; returns an outcome for each verdict."""
    first = {verdict.transaction_id: verdict for verdict in reversed(verdicts)}
    key = "CAST(key AS uuid)" if is_postgresql(database) else "key"
    free = unlocked(database, f"id IN (SELECT {key} FROM given) AND status IN ('PENDING', 'EXPIRED')")
    statement = f"""WITH given (key, verdict, reason, equipment)
        AS (VALUES {", ".join(["(?, ?, ?, ?)"] * len(first))})
        UPDATE "transaction" SET status = verdict, reason = given.reason, equipment = given.equipment,
            updated = ?, retry_at = NULL
        FROM given WHERE id = {key} AND {free} RETURNING id, expires_at, asked_at"""
    values = [(row_id.hex, one.status, one.reason, one.equipment) for row_id, one in first.items()]
    changed = {}
    for row_id, deadline, asked_at in execute(database, statement, *chain.from_iterable(values), now):
        kind = "late" if deadline and deadline <= clock else "settled"
        changed[uuid(row_id)] = Settled(kind, None if asked_at is None else max(0, clock - asked_at))
    repeated = len(first) < len(verdicts)
    others = _by(database, "id", [row_id.hex for row_id in first if repeated or row_id not in changed])

    def outcome(verdict: Verdict) -> Settled:
        if verdict.transaction_id in changed:
            return changed.pop(verdict.transaction_id)
        if verdict.transaction_id not in others:
            return Settled("unknown")
        stored = others[verdict.transaction_id].status
        if stored in (Status.PENDING, Status.EXPIRED):
            return LOCKED
        return Settled("duplicate" if stored == verdict.status else "contradiction")

    return [outcome(verdict) for verdict in verdicts]


def hold(database: Database, clock: int, timeouts: Timeouts, transaction_ids: Collection[UUID]) -> None:
    """Postpone questions that the broker has not taken yet; restart the clock on a first attempt."""
    if transaction_ids:
        free = unlocked(database, f"id IN {placeholders(transaction_ids)} AND {OPEN}")
        statement = f"""UPDATE "transaction" SET retry_at = ?,
            expires_at = CASE WHEN attempts = 1 THEN ? ELSE expires_at END WHERE {free}"""
        ids = [transaction_id.hex for transaction_id in transaction_ids]
        execute(database, statement, clock + timeouts.retry, clock + timeouts.timeout, *ids)


def expire(database: Database, now: int, clock: int) -> list[UUID]:
    """Make every question EXPIRED whose deadline has passed; returns the ids."""
    statement = f"""UPDATE "transaction" SET status = 'EXPIRED', updated = ?, retry_at = NULL
        WHERE {unlocked(database, f"{OPEN} AND expires_at <= ?")} RETURNING id"""
    return [uuid(row_id) for (row_id,) in execute(database, statement, now, clock)]


def room(database: Database) -> int:
    """How many more questions may be opened now."""
    statement = f'SELECT count(*) FROM (SELECT 1 FROM "transaction" WHERE {OPEN} LIMIT ?) AS opened'
    return WINDOW - int(execute(database, statement, WINDOW)[0][0])


def claim(
    database: Database, clock: int, timeouts: Timeouts, limit: int, waiting: bool = False
) -> list[Asked]:
    """Mark at most `limit` questions that are due as asked now; returns them, to publish after the commit.

    Takes open questions, to be asked again with a doubling backoff; with `waiting`, takes questions that
    have never been asked, and starts their clock.
    """
    # How often VALIDATION_RETRY doubles until it is longer than the longest backoff.
    # MATERIALIZED: PostgreSQL might otherwise run the subquery once per row, and take more than the limit.
    doublings = (LONGEST_BACKOFF // timeouts.retry).bit_length()
    statement = f"""WITH due AS MATERIALIZED (
            SELECT id FROM "transaction" WHERE {WAITING if waiting else OPEN} AND retry_at <= ?
            ORDER BY retry_at LIMIT ? {"FOR UPDATE SKIP LOCKED" if is_postgresql(database) else ""})
        UPDATE "transaction" SET attempts = CASE WHEN attempts < {MOST} THEN attempts + 1 ELSE attempts END,
            asked_at = ?, expires_at = coalesce(expires_at, ?),
            retry_at = ? + CASE WHEN attempts < ? THEN ? << attempts ELSE ? END
        WHERE id IN (SELECT id FROM due) RETURNING id, station_id, retry_at"""
    backoff = doublings, timeouts.retry, LONGEST_BACKOFF
    rows = execute(database, statement, clock, limit, clock, clock + timeouts.timeout, clock, *backoff)
    return [(Question(uuid(row_id), station_id), retry_at - clock) for row_id, station_id, retry_at in rows]


def ask_again(database: Database, clock: int, restart: bool) -> None:
    """Make every open question due one second after it was last asked; with `restart`, clear its deadline.

    If one is due even later, as after a clock step and a restart, make it due now.
    """
    cleared = "attempts = 0, expires_at = NULL," if restart else ""
    statement = f"""UPDATE "transaction" SET {cleared}
        retry_at = CASE WHEN asked_at BETWEEN ? AND ? THEN asked_at + ? ELSE ? END
        WHERE {unlocked(database, OPEN)}"""
    execute(database, statement, clock - SECOND, clock, SECOND, clock)
    free = unlocked(database, f"{WAITING} AND retry_at > ?")
    statement = f'UPDATE "transaction" SET retry_at = ? WHERE {free}'
    execute(database, statement, clock, clock + SECOND)


def delete_finished(database: Database, before: int, after: Cursor, limit: int) -> tuple[Cursor, int]:
    """Look at the next `limit` transactions that last changed before a time; delete the finished ones.

    We go by `updated` and id. Returns where to go on (after the last one, or at FIRST) and how many were
    deleted. This way, old transactions that are still PENDING don't slow it down.
    """
    statement = """SELECT updated, id, status FROM "transaction"
        WHERE (updated, id) > (?, ?) AND updated < ? ORDER BY updated, id LIMIT ?"""
    rows = execute(database, statement, after[0], after[1].hex, before, limit)
    finished = [uuid(row_id).hex for _, row_id, status in rows if status != "PENDING"]
    if finished:
        free = unlocked(database, f"id IN {placeholders(finished)}")
        execute(database, f'DELETE FROM "transaction" WHERE {free}', *finished)
        last = [(updated, uuid(row_id).hex) for updated, row_id, status in rows if status != "PENDING"][-1]
        statement = """INSERT INTO retention (id, deleted, deleted_id) VALUES (1, ?, ?)
            ON CONFLICT (id) DO UPDATE SET deleted = excluded.deleted, deleted_id = excluded.deleted_id
            WHERE (retention.deleted, retention.deleted_id) < (excluded.deleted, excluded.deleted_id)"""
        execute(database, statement, *last)
    return (rows[-1][0], uuid(rows[-1][1])) if len(rows) == limit else FIRST, len(finished)
