"""The connection: which database, its schema, its transactions, and statements that are written as SQL.

Each thread has a connection of its own, which its first query opens and `close` closes.
"""

import os
from collections.abc import Callable, Collection, Iterable

from peewee import DatabaseError, DatabaseProxy, InterfaceError, SqliteDatabase
from playhouse import migrations
from playhouse.db_url import connect

ERRORS = (DatabaseError, InterfaceError)  # whatever is wrong with the database
MIGRATIONS = os.path.join(os.path.dirname(__file__), "migrations")
# That a server has vanished without a word is noticed within eleven seconds (libpq, "Parameter Key Words").
NOTICE = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
NOTICE |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
MIGRATING = 20260328  # the number of a lock that PostgreSQL keeps for whoever names it

proxy = DatabaseProxy()


def bind(url: str) -> None:
    """Say which database to use, as `playhouse.db_url` reads it; opens nothing."""
    options = {}
    if url.startswith("sqlite"):
        pragmas = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
        # IMMEDIATE: a transaction that reads first and writes later would fail at once where another process writes.
        options = {"pragmas": pragmas, "timeout": 5, "lock_type": "IMMEDIATE"}
    else:
        options = {name: value for name, value in NOTICE.items() if f"{name}=" not in url}
        options["prefer_psycopg3"] = True
    proxy.initialize(connect(url, unquote_user=True, unquote_password=True, **options))


def migrate() -> None:
    """Bring the schema up to date; of several processes that start together, one does."""
    if not remote():
        os.makedirs(os.path.dirname(os.path.abspath(proxy.database)), exist_ok=True)
    with writing():
        if remote():
            run("SELECT pg_advisory_xact_lock(?)", MIGRATING)
        migrations.run(proxy.obj, MIGRATIONS)


def writing():
    """One database transaction, as a context manager: all of it is on disk afterwards, or none."""
    return proxy.atomic()


def run(statement: str, *values) -> Iterable[tuple]:
    """Execute a statement that has a `?` for each value; returns its rows, if it has any."""
    return proxy.execute_sql(statement.replace("?", proxy.param), values)


def retried(read: Callable, **arguments):
    """Call what only reads; and again, over another connection, if the first one turns out to be broken."""
    try:
        return read(**arguments)
    except ERRORS:
        close()
    try:
        return read(**arguments)
    except ERRORS:
        close()
        raise


def marks(values: Collection) -> str:
    """A place for each of these values, in parentheses."""
    return f"({', '.join('?' * len(values))})"


def locked(strength: str) -> str:
    """The clause that locks the rows of a SELECT, where other writers could be at them meanwhile; else nothing."""
    return strength if proxy.for_update else ""


def remote() -> bool:
    """True if the connection can be lost while a commit is under way, so that nobody knows whether it was done."""
    return not isinstance(proxy.obj, SqliteDatabase)


def collided(error: Exception) -> bool:
    """True if the database gave up this transaction for another one's sake: a deadlock or a serialization failure."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in ("40P01", "40001")


def check() -> None:
    """Raise peewee.DatabaseError or InterfaceError if the database does not answer."""
    run("SELECT 1 FROM station WHERE id = ?", 0)


def close() -> None:
    """Close the calling thread's connection; the next query opens another."""
    if not proxy.is_closed():
        proxy.close()
