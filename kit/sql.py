"""Connections, transactions and statements that work in both SQLite and PostgreSQL."""

import os
import time
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import peewee
from peewee import Database
from playhouse.pool import PooledPostgresqlDatabase, PooledSqliteDatabase

POOL_TIMEOUT = 5  # seconds that a thread waits for a connection, or until the database is open
PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1, "journal_size_limit": 2**23}
PRAGMAS |= {"temp_store": "memory"}  # else most commits make a file in /var/tmp, which may be full
# We notice within eleven seconds that a server has vanished (libpq, "Parameter Key Words").
NETWORK = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
NETWORK |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
LONGEST_READ = 5  # seconds
LONGEST_WRITE = 5.0  # seconds; also how long SQLite waits for a lock
WRITERS = 20260328  # advisory lock id that serialises the writers of one PostgreSQL database
# In a transaction on PostgreSQL. We wait for other writers first, and then only a moment for a locked row.
# If this process freezes, the server ends its session, so that other replicas can write.
BEGIN = f"""SELECT set_config('idle_in_transaction_session_timeout', '{LONGEST_WRITE}s', true),
    set_config('lock_timeout', '{LONGEST_WRITE}s', true), pg_advisory_xact_lock({WRITERS}),
    set_config('lock_timeout', '0.2s', true)"""
# Only for one transaction: PgBouncer gives the same session to other clients afterwards.
READ_ONLY = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '{}s'"


def connect(url: str, connections: int) -> Any:
    """A peewee database with a pool for this number of connections; opens none."""
    pool: dict[str, Any] = {"max_connections": connections, "timeout": POOL_TIMEOUT}
    if url.startswith("sqlite:///"):
        file = unquote(url.removeprefix("sqlite:///"))
        # mode=rw: if the file was removed, a connection must not create another one.
        # IMMEDIATE: a transaction that reads first and writes later fails if another process writes.
        options = {"pragmas": PRAGMAS, "lock_type": "IMMEDIATE", "check_same_thread": False}
        uri = f"file://{quote(os.path.realpath(file))}?mode=rw"  # SQLite keeps the log beside that
        return PooledSqliteDatabase(uri, uri=True, **pool, **options)
    options = {name: value for name, value in NETWORK.items() if f"{name}=" not in url}
    url = "postgresql" + url.removeprefix("postgresql").removeprefix("postgres")
    options |= pool | {"client_encoding": "utf8"}
    options["prepare_threshold"] = None  # PgBouncer may give each transaction another session
    return PooledPostgresqlDatabase(url, prefer_psycopg3=True, **options)


def is_postgresql(database: Database) -> bool:
    """True for PostgreSQL, False for SQLite."""
    return isinstance(database, peewee.PostgresqlDatabase)


def path(database: Any) -> str:
    """A SQLite database's file name."""
    return unquote(database.database.removeprefix("file://").removesuffix("?mode=rw"))


@contextmanager
def begin(database: Any) -> Iterator[None]:
    """A database transaction that makes every other writer wait until it ends."""
    with database.atomic("READ COMMITTED, READ WRITE" if is_postgresql(database) else None):
        if is_postgresql(database):
            execute(database, BEGIN)
        yield


@contextmanager
def limited(database: Any) -> Iterator[None]:
    """End each statement in this block after LONGEST_READ. The block must only read."""
    if not is_postgresql(database):
        connection, until = database.connection(), time.monotonic() + LONGEST_READ
        connection.set_progress_handler(lambda: time.monotonic() > until, 100_000)  # steps, about 1 ms
        try:
            yield
        finally:
            connection.set_progress_handler(None, 0)
        return
    execute(database, READ_ONLY.format(LONGEST_READ))
    try:
        yield
    finally:
        execute(database, "COMMIT")


def drop(database: Any) -> None:
    """Close this thread's connection and the idle ones for good. (`close` keeps them in the pool.)"""
    database.manual_close()
    database.close_idle()


def execute(database: Any, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Execute a statement that has a `?` for each value; returns its rows, if it has any."""
    cursor = database.execute_sql(statement.replace("?", database.param), values)
    return cursor.fetchall() if cursor.description else []


def placeholders(values: Sized) -> str:
    """A place for each of these values, in parentheses."""
    return f"({', '.join('?' * len(values))})"


def uuid(found: str | UUID) -> UUID:
    """An id from a column. SQLite has no UUID type and stores 32 hexadecimal digits."""
    return found if isinstance(found, UUID) else UUID(found)


def newest(table: str, equal: Sequence[tuple[str, Any]], lowest: UUID, bound: UUID) -> tuple[str, list[Any]]:
    """A SELECT for a table's newest rows that have these values and an id in this range.

    The last of these columns and the id are compared as a pair. For `status = ? AND id < ?` PostgreSQL may
    read the primary key, and skip all other rows on the way to that status. The pair is in one index only.
    """
    *others, (column, value) = equal or [("", None)]
    row, place, key = (f"({column}, id)", "(?, ?)", [value]) if column else ("id", "?", [])
    same = "".join(f"{name} = ? AND " for name, _ in others)
    order = f"{column} DESC, id DESC" if column else "id DESC"
    statement = f"""SELECT * FROM {table} WHERE {same} {row} >= {place} AND {row} < {place}
        AND created BETWEEN ? AND ? ORDER BY {order} LIMIT ?"""
    return statement, [*(value for _, value in others), *key, lowest.hex, *key, bound.hex]
