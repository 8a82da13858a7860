"""A SQLite database whose statements and commits can fail, and that notes each change of a transaction.

Triggers write the changes into a table of the same file, so the journal has what was committed and no more.
"""

import shutil
import sqlite3

from peewee import __exception_wrapper__
from playhouse.pool import PooledSqliteDatabase

import models
from kit import sql, storage
from kit.clock import SECOND
from programs import MIGRATIONS

# How a write fails: what SQLite says, and the name of its code.
FAULTS = {
    "refused": ("unable to open database file", "SQLITE_CANTOPEN"),
    "locked": ("database is locked", "SQLITE_BUSY"),
    "statement": ("database or disk is full", "SQLITE_FULL"),
    "lost": ("disk I/O error", "SQLITE_IOERR_FSYNC"),  # COMMIT fails, and nothing is stored
    "stored": ("disk I/O error", "SQLITE_IOERR_FSYNC"),  # COMMIT fails, and all is stored
    "checkpoint": ("disk I/O error", "SQLITE_IOERR_FSYNC"),
}
COLUMNS = "id, status, created, updated, station_id, idempotency_key"
JOURNAL = f"CREATE TABLE journal (number INTEGER PRIMARY KEY, what, {COLUMNS})"
TRIGGER = """CREATE TRIGGER journal_{what} AFTER {what} {of} ON "transaction" BEGIN
    INSERT INTO journal (what, {columns}) VALUES ('{what}', {values}); END"""


class Database(PooledSqliteDatabase):
    """One process's connections. Each method is a call into the world, where the process may be killed."""

    def _fail(self, kind: str) -> None:
        if self.process.armed[kind]:
            self.process.armed[kind] -= 1
            self.process.world.note(self.process, "fails", kind)
            text, code = FAULTS[kind]
            error = sqlite3.OperationalError(text)
            error.sqlite_errorname = code
            raise error

    def begin(self, lock_type: str | None = None) -> None:
        self.process.call("begin")
        with __exception_wrapper__:
            self._fail("refused")
            if self.process.armed["locked"]:
                self.process.world.now += 5 * SECOND
                self._fail("locked")
        super().begin(lock_type)
        self.process.call("begun")

    def execute_sql(self, statement: str, values=None):
        self.process.call("execute")
        with __exception_wrapper__:
            if statement.startswith("PRAGMA wal_checkpoint"):
                self._fail("checkpoint")
            if self.process.armed["statement"] > 1:
                self.process.armed["statement"] -= 1
            else:
                self._fail("statement")
        return super().execute_sql(statement, values)

    def commit(self) -> None:
        self.process.call("commit")
        with __exception_wrapper__:
            self._fail("lost")
        super().commit()
        self.process.world.rules.committed(self.process)
        with __exception_wrapper__:
            self._fail("stored")
        self.process.call("committed")

    def rollback(self) -> None:
        self.process.call("rollback")
        super().rollback()

    def abandon(self) -> None:
        """Close all connections without a commit, as the kernel does for a process that was killed."""
        used = [one.connection for one in self._in_use.values()]
        for connection in [*used, *(one for _, _, one in self._connections)]:
            connection.close()


def connect(process):
    """Stands for `kit.sql.connect` in one process."""

    def connect(url: str, pool: int) -> Database:
        database = sql.connect(url, pool)
        database.__class__, database.process = Database, process
        return database

    return connect


def template(file: str) -> None:
    """Make a database with all tables, two stations and the journal."""
    database = sql.connect(f"sqlite:///{file}", 1)
    storage.prepare(database, MIGRATIONS)
    for description in ("one", "two"):
        models.create_station(database, description)
    sql.execute(database, JOURNAL)
    for what, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
        of = f"OF {COLUMNS}" if what == "UPDATE" else ""
        values = ", ".join(f"{row}.{column}" for column in COLUMNS.split(", "))
        sql.execute(database, TRIGGER.format(what=what, of=of, columns=COLUMNS, values=values))
    database.close_all()


def copy(source: str, file: str) -> sqlite3.Connection:
    """A new database for a world, and the world's own connection to it."""
    shutil.copy(source, file)
    return sqlite3.connect(file, isolation_level=None)
