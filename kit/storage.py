"""The database: made from its URL by one function, opened and checked by another, and what every query needs."""

import os
from collections.abc import Callable, Sized
from typing import Any
from urllib.parse import quote, unquote

from peewee import (
    Database,
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    Model,
    NotSupportedError,
    OperationalError,
    PostgresqlDatabase,
    ProgrammingError,
)
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase, PooledSqliteDatabase
from playhouse.schema_diff import diff_models

ERRORS = (DatabaseError, InterfaceError, MaxConnectionsExceeded)  # anything that is wrong with the database
PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1, "journal_size_limit": 64 * 1024 * 1024}
# A server that vanishes without a word is noticed within eleven seconds (libpq, "Parameter Key Words").
NETWORK = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
NETWORK |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
WRITERS = 20260328  # advisory lock id that serialises the writers of one PostgreSQL database


class Unusable(Exception):
    """This database must not be written to until someone has looked at it. The text is one sentence that says why."""


def connect(url: str, connections: int) -> Database:
    """A database with a pool of so many connections; opens none. Raises ValueError for a URL it does not understand."""
    if url.startswith("sqlite:///"):
        path = unquote(url.removeprefix("sqlite:///"))
        # mode=rw: a connection never creates the file, so none can stand in for one that was removed.
        uri = f"file:{quote(path)}?mode=rw"
        # IMMEDIATE: a transaction that reads first and writes later would fail at once if another process writes.
        options: dict[str, Any] = {"pragmas": PRAGMAS, "lock_type": "IMMEDIATE", "check_same_thread": False}
        return PooledSqliteDatabase(uri, uri=True, max_connections=connections, **options)
    options = {name: value for name, value in NETWORK.items() if f"{name}=" not in url}
    url = "postgresql" + url.removeprefix("postgresql").removeprefix("postgres")
    return PooledPostgresqlDatabase(url, prefer_psycopg3=True, max_connections=connections, **options)


def is_postgresql(database: Database) -> bool:
    """True for PostgreSQL, False for SQLite."""
    return isinstance(database, PostgresqlDatabase)


def path(database: Database) -> str:
    """The path of a SQLite database's file."""
    return unquote(database.database.removeprefix("file:").removesuffix("?mode=rw"))


def prepare(database: Database, migrations: str, models: list[type[Model]]) -> None:
    """Create the file if there is none, bring the schema up to date, and check it against the models.

    Several processes may do this at once: one of them migrates. Raises Unusable, OSError, or one of ERRORS.
    """
    if not is_postgresql(database):
        open(path(database), "ab").close()
    with database.atomic():
        lock(database)
        runner = Runner(database, migrations)
        later = [migration.name for migration in runner.status() if migration.path is None]
        if later:
            raise Unusable(f"the schema is of a later release: this one does not know the migration {later[0]}")
        runner.up()
    difference = diff_models(database, models)
    if difference.create_tables or difference.add_columns or difference.drop_columns:
        raise Unusable(f"the schema is not that of this release: {str(difference).partition(chr(10))[0]} is missing")


def lock(database: Database) -> None:
    """Make every other writer of this database wait until the end of the database transaction."""
    if is_postgresql(database):
        execute(database, "SELECT pg_advisory_xact_lock(?)", WRITERS)


def execute(database: Database, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Execute a statement that has a `?` for each value; returns its rows, if it has any."""
    cursor = database.execute_sql(statement.replace("?", database.param), values)
    return cursor.fetchall() if cursor.description else []


def read(database: Database, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(database, …)`, which only reads; once more, over another connection, if the first was broken."""
    try:
        with database.connection_context():
            return function(database, *arguments)
    except ERRORS:
        drop(database)
    with database.connection_context():
        return function(database, *arguments)


def drop(database: Database) -> None:
    """Close this thread's connection and the idle ones for good. (`close` would hand the same ones out again.)"""
    database.manual_close()
    database.close_idle()


def placeholders(values: Sized) -> str:
    """A place for each of these values, in parentheses."""
    return f"({', '.join('?' * len(values))})"


def is_fault(error: Exception) -> bool:
    """True if the database, or the way to it, is at fault; False if it is the statement or its values."""
    return not isinstance(error, DataError | IntegrityError | ProgrammingError | NotSupportedError)


def checkpoint(database: Database) -> None:
    """After a COMMIT that failed: find out what is stored, by writing all of SQLite's log to the file.

    In WAL mode SQLite writes a transaction to the log before the fsync that makes it durable. If that fsync fails, the
    transaction may or may not be found again. Once a checkpoint has emptied the log, everything in it is in the file.
    Raises OperationalError while that is not possible. PostgreSQL settles this itself.
    """
    if not is_postgresql(database):
        ((busy, _, _),) = rows = execute(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise OperationalError("another process is reading the database and keeps its log in use")
        if rows != [(0, 0, 0)]:
            raise OperationalError(f"the log of the database could not be emptied: {rows[0]}")


def probe(database: Database) -> None:
    """Write something, to see whether that is possible; raises one of ERRORS."""
    with database.atomic():
        if is_postgresql(database):
            execute(database, "UPDATE schema_migration SET applied = applied WHERE id = (SELECT min(id) FROM schema_migration)")
        else:
            # An empty transaction, or an update to the same value, would add nothing to the log and prove nothing.
            ((version,),) = execute(database, "PRAGMA user_version")
            execute(database, f"PRAGMA user_version = {version % 1_000_000 + 1}")


def check(database: Database) -> None:
    """Raise one of ERRORS if the database does not answer."""
    execute(database, "SELECT 1")
