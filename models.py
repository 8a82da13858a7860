"""Tables and every query on them: nobody else writes SQL or sets a status.

What every transaction goes through is written as SQL: from expressions, the same takes ten times as long to be built as
to be executed (bench/README.md).

Times are whole microseconds since 1970 (UTC), given by the caller; nothing here reads a clock. Whatever changes a row
is called by the ledger's thread only, inside `writing()`; whatever reads may be called by any thread.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from peewee import SQL, BigIntegerField, CharField, ForeignKeyField, Model, SmallIntegerField, UUIDField

from schemas import Station as StationOut
from schemas import Status
from schemas import Transaction as TransactionOut
from storage import locked, marks, proxy, run

SECOND = 1_000_000
LONGEST_BACKOFF = 30 * SECOND
WINDOW = 1000  # questions that are open at one time: asked, not answered, their clock running
CLAIM = 500  # rows that one claim takes at most


class Refusal(Exception):
    """A request that the rules refuse; `status` is the HTTP status (RFC 9110) that says so."""

    status = 500


class NotFound(Refusal):
    status = 404


class Conflict(Refusal):
    status = 409


class Unprocessable(Refusal):
    status = 422


class Station(Model):
    description = CharField(255)

    class Meta:
        database = proxy


class Transaction(Model):
    id = UUIDField(primary_key=True)
    station = ForeignKeyField(Station)
    status = CharField()
    created = BigIntegerField()
    updated = BigIntegerField()
    idempotency_key = CharField(null=True)
    attempts = SmallIntegerField()  # how often the question was asked since its clock last started
    asked_at = BigIntegerField(null=True)
    retry_at = BigIntegerField(null=True)  # null: not PENDING, nothing to ask
    expires_at = BigIntegerField(null=True)  # null: its clock does not run

    class Meta:
        database = proxy


# Each has an index of its own, which the planner finds by these very conditions.
WAITS = "retry_at IS NOT NULL AND expires_at IS NULL"
OPEN = "retry_at IS NOT NULL AND expires_at > 0"


# Stations


def get_station(station_id: int) -> StationOut:
    """One station; raises NotFound."""
    for row in Station.select().where(Station.id == station_id).tuples():
        return StationOut(*row)
    raise NotFound(f"There is no station {station_id}.")


def list_stations(limit: int, after: int | None) -> list[StationOut]:
    """At most `limit` stations, newest last, from the id behind `after`."""
    rows = Station.select().where(Station.id > (after or 0)).order_by(Station.id).limit(limit)
    return [StationOut(*row) for row in rows.tuples()]


def create_station(description: str) -> StationOut:
    """The new station, with its id."""
    return StationOut(Station.insert(description=description).execute(), description)


def change_station(station_id: int, description: str) -> StationOut:
    """The station as it reads now; raises NotFound."""
    Station.update(description=description).where(Station.id == station_id).execute()
    return get_station(station_id)


def delete_station(station_id: int) -> None:
    """Raises NotFound, or Conflict while the station has transactions."""
    if not list(run(f"SELECT 1 FROM station WHERE id = ? {locked('FOR UPDATE')}", station_id)):
        raise NotFound(f"There is no station {station_id}.")
    if Transaction.select(SQL("1")).where(Transaction.station == station_id).limit(1).tuples().first():
        raise Conflict(f"Station {station_id} has transactions, so it stays.")
    Station.delete().where(Station.id == station_id).execute()


# Transactions


def moment(microseconds: int) -> datetime:
    """A stored time as a datetime with the zone UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


COLUMNS = (
    Transaction.id,
    Transaction.station,
    Station.description,
    Transaction.status,
    Transaction.created,
    Transaction.updated,
)


def _read(row: Sequence) -> TransactionOut:
    key, station_id, description, status, created, updated = row
    station = StationOut(station_id, description)
    return TransactionOut(key, station, Status(status), moment(created), moment(updated))


def get_transaction(key: UUID) -> TransactionOut:
    """One transaction; raises NotFound."""
    rows = run(
        """SELECT t.id, station.id, description, status, created, updated
        FROM "transaction" AS t JOIN station ON station.id = station_id WHERE t.id = ?""",
        key.hex,
    )
    for row_id, *rest in rows:
        return _read((uuid(row_id), *rest))
    raise NotFound(f"There is no transaction {key}.")


def list_transactions(
    limit: int, after: UUID | None = None, status: Status | None = None, station_id: int | None = None
) -> list[TransactionOut]:
    """At most `limit` transactions, newest first, from the one behind `after`."""
    rows = Transaction.select(*COLUMNS).join(Station).order_by(Transaction.id.desc()).limit(limit)
    if after is not None:
        rows = rows.where(Transaction.id < after)
    if status is not None:
        rows = rows.where(Transaction.status == status.value)
    if station_id is not None:
        rows = rows.where(Transaction.station == station_id)
    return [_read(row) for row in rows.tuples()]


def statuses(keys: Iterable[UUID]) -> dict[UUID, Status]:
    """The status of each of these transactions that exists."""
    keys = [key.hex for key in keys]
    rows = run(f"""SELECT id, status FROM "transaction" WHERE id IN {marks(keys)}""", *keys)
    return {uuid(key): Status(status) for key, status in rows}


def uuid(stored: str | UUID) -> UUID:
    """An id as the database returns it: SQLite knows no such type."""
    return stored if isinstance(stored, UUID) else UUID(stored)


class Question(NamedTuple):
    """What is asked of the equipment, and in how many microseconds it will be asked again."""

    transaction_id: UUID
    station_id: int
    backoff: int


class Order(NamedTuple):
    """A transaction that a client wants."""

    transaction_id: UUID
    station_id: int
    idempotency_key: str | None


class Clocks(NamedTuple):
    """VALIDATION_RETRY and VALIDATION_TIMEOUT, in microseconds."""

    retry: int
    timeout: int


def create_transactions(
    orders: Sequence[Order], now: int, clocks: Clocks, room: int
) -> tuple[list[TransactionOut | Refusal], list[Question]]:
    """Store each order as PENDING, the first `room` of them as asked.

    Returns an answer for each order (the transaction, or why there is none) and the questions to publish once this is
    committed. An order whose key was used before gets the first answer again if it is for the same station; one that is
    stored already, as after a commit that was in doubt, stays as it is.
    """
    if not orders:
        return [], []
    stations = _stations({order.station_id for order in orders})
    valid = [order for order in orders if order.station_id in stations]
    _insert(valid[:room], now, (1, now, now + clocks.retry, now + clocks.timeout))
    _insert(valid[room:], now, (0, None, now, None))
    first = _first_answers({order.idempotency_key for order in valid} - {None})

    def answer(order: Order) -> TransactionOut | Refusal:
        if order.station_id not in stations:
            return Unprocessable(f"body.station_id: There is no station {order.station_id}.")
        key, station_id, created = first.get(order.idempotency_key, (order.transaction_id, order.station_id, now))
        if station_id != order.station_id:
            return Unprocessable(f"Idempotency-Key: was used before, for station {station_id}.")
        return TransactionOut(key, stations[station_id], Status.PENDING, moment(created), moment(created))

    answers = [answer(order) for order in orders]
    stored = {a.id for a in answers if isinstance(a, TransactionOut)}
    opened = [order for order in valid[:room] if order.transaction_id in stored]
    return answers, [Question(order.transaction_id, order.station_id, clocks.retry) for order in opened]


def _stations(ids: set[int]) -> dict[int, StationOut]:
    """Those of these stations that exist; nobody deletes them before the end of the database transaction."""
    rows = run(f"SELECT id, description FROM station WHERE id IN {marks(ids)} {locked('FOR KEY SHARE')}", *ids)
    return {row[0]: StationOut(*row) for row in rows}


def _insert(orders: Sequence[Order], now: int, asked: tuple) -> None:
    """Store these as PENDING, with what `asked` says of attempts, asked_at, retry_at and expires_at."""
    if orders:
        common = Status.PENDING.value, now, now, *asked
        rows = [(order.transaction_id.hex, order.station_id, order.idempotency_key, *common) for order in orders]
        run(
            f"""INSERT INTO "transaction" (id, station_id, idempotency_key, status, created, updated,
                attempts, asked_at, retry_at, expires_at)
            VALUES {", ".join([marks(rows[0])] * len(rows))} ON CONFLICT DO NOTHING""",
            *chain.from_iterable(rows),
        )


def _first_answers(keys: set[str]) -> dict[str, tuple[UUID, int, int]]:
    """By idempotency key: id, station and creation of the transaction that was stored with it."""
    if not keys:
        return {}
    rows = run(
        f"""SELECT idempotency_key, id, station_id, created FROM "transaction"
        WHERE idempotency_key IN {marks(keys)}""",
        *keys,
    )
    return {key: (uuid(row_id), *rest) for key, row_id, *rest in rows}


class Settled(NamedTuple):
    """A verdict that was stored: whether it came past its time, and how many microseconds after the creation."""

    late: bool
    age: int


def settle(verdicts: dict[UUID, Status], now: int) -> dict[UUID, Settled]:
    """Store the verdicts of transactions that have none; returns the transactions that this changed."""
    changed = {}
    for status in (Status.COMPLETED, Status.ERROR):
        keys = [key.hex for key, verdict in verdicts.items() if verdict is status]
        if keys:
            rows = run(
                f"""UPDATE "transaction" SET status = ?, updated = ?, retry_at = NULL
                WHERE id IN {marks(keys)} AND status IN ('PENDING', 'EXPIRED') RETURNING id, expires_at, created""",
                *(status.value, now, *keys),
            )
            for key, deadline, created in rows:
                changed[uuid(key)] = Settled(bool(deadline and deadline <= now), now - created)
    return changed


def expire(now: int) -> list[UUID]:
    """Make EXPIRED what nobody answered in time; returns the ids."""
    rows = run(
        f"""UPDATE "transaction" SET status = 'EXPIRED', updated = ?, retry_at = NULL
        WHERE {OPEN} AND expires_at <= ? RETURNING id""",
        *(now, now),
    )
    return [uuid(key) for (key,) in rows]


def oldest_pending() -> int | None:
    """When the oldest PENDING transaction was created, or None."""
    pending = Transaction.select(Transaction.created).where(Transaction.status == Status.PENDING.value)
    return pending.order_by(Transaction.id).limit(1).scalar()


def room() -> int:
    """How many more questions may be opened now."""
    ((opened,),) = run(f"""SELECT count(*) FROM (SELECT 1 FROM "transaction" WHERE {OPEN} LIMIT ?) AS opened""", WINDOW)
    return WINDOW - opened


def claim(now: int, clocks: Clocks, limit: int, waiting: bool = False) -> list[Question]:
    """Take at most `limit` questions that are due as asked now; returns them, to be published once this is committed.

    Takes open questions, which are asked again with a backoff that doubles, or, with `waiting`, those that wait to be
    asked first, whose clock starts now.
    """
    # How often VALIDATION_RETRY doubles until it is longer than the longest backoff.
    doublings = (LONGEST_BACKOFF // clocks.retry).bit_length()
    # PostgreSQL might run a mere subquery once for every row, and take other ones each time, beyond the limit.
    rows = run(
        f"""WITH due AS MATERIALIZED (
            SELECT id FROM "transaction" WHERE {WAITS if waiting else OPEN} AND retry_at <= ?
            ORDER BY retry_at LIMIT ? {locked("FOR UPDATE SKIP LOCKED")}
        )
        UPDATE "transaction" SET attempts = attempts + 1, asked_at = ?, expires_at = coalesce(expires_at, ?),
            retry_at = ? + CASE WHEN attempts < ? THEN ? << attempts ELSE ? END
        WHERE id IN (SELECT id FROM due) AND retry_at <= ? RETURNING id, station_id, retry_at""",
        *(now, limit, now, now + clocks.timeout, now, doublings, clocks.retry, LONGEST_BACKOFF, now),
    )
    return [Question(uuid(key), station_id, retry_at - now) for key, station_id, retry_at in rows]


def rearm(now: int) -> None:
    """Let every open question be asked again, a second after it was last asked, its clock stopped until then.

    What waits further ahead than that, as after a step of the wall clock and a restart, is due now too.
    """
    run(
        f"""UPDATE "transaction" SET attempts = 0, expires_at = NULL,
            retry_at = CASE WHEN asked_at BETWEEN ? AND ? THEN asked_at + ? ELSE ? END
        WHERE {OPEN}""",
        *(now - SECOND, now, SECOND, now),
    )
    run(f"""UPDATE "transaction" SET retry_at = ? WHERE {WAITS} AND retry_at > ?""", now, now + SECOND)
