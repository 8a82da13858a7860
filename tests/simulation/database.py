"""A SQLite database whose statements and commits can fail, and that notes each change of a transaction.

Triggers write the changes into a table of the same file, so the journal has what was committed and no more.
"""

import sqlite3

from peewee import __exception_wrapper__
from playhouse.pool import PooledSqliteDatabase

import models
from kit import sql, storage
from kit.clock import SECOND
from programs import MIGRATIONS
from rules import COLUMNS

# How a write fails: what SQLite says, and the name of its code.
FAULTS = {
    "refused": ("unable to open database file", "SQLITE_CANTOPEN"),
    "locked": ("database is locked", "SQLITE_BUSY"),
    "statement": ("database or disk is full", "SQLITE_FULL"),
    "lost": ("disk I/O error", "SQLITE_IOERR_FSYNC"),  # COMMIT fails, and nothing is stored
    "stored": ("disk I/O error", "SQLITE_IOERR_FSYNC"),  # COMMIT fails, and all is stored
    "checkpoint": ("disk I/O error", "SQLITE_IOERR_FSYNC"),
}
JOURNAL = f"CREATE TABLE journal (number INTEGER PRIMARY KEY, what, {COLUMNS})"
TRIGGER = """CREATE TRIGGER journal_{0} AFTER {0} {1} ON "transaction" BEGIN
    INSERT INTO journal (what, {2}) VALUES ('{0}', {3}); END"""


class Database(PooledSqliteDatabase):
    """One process's connections. Each method is a call into the world, where the process may be killed."""

    def _call(self, name: str, *faults: str) -> None:
        process = self.process
        process.call(name)
        for fault in faults:
            if process.armed[fault]:
                process.armed[fault] -= 1
                if fault == "statement" and process.armed[fault]:  # so many statements still work
                    continue
                process.world.note(process, "fails", fault)
                process.world.now += 5 * SECOND * (fault == "locked")
                text, code = FAULTS[fault]
                error = sqlite3.OperationalError(text)
                error.sqlite_errorname = code
                with __exception_wrapper__:
                    raise error

    def begin(self, lock_type: str | None = None) -> None:
        self._call("begin", "refused", "locked")
        super().begin(lock_type)
        self._call("begun")

    def execute_sql(self, statement: str, values=None):
        self._call("execute", "statement", *["checkpoint"] * statement.startswith("PRAGMA wal_checkpoint"))
        return super().execute_sql(statement, values)

    def commit(self) -> None:
        self._call("commit", "lost")
        super().commit()
        self.process.world.rules.committed(self.process)
        self._call("committed", "stored")

    def rollback(self) -> None:
        self._call("rollback")
        super().rollback()

    def abandon(self) -> None:
        """Close all connections without a commit, as the kernel does for a process that was killed."""
        used = [one.connection for one in self._in_use.values()]
        for connection in [*used, *(one for _, _, one in self._connections)]:
            connection.close()


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
        sql.execute(database, TRIGGER.format(what, of, COLUMNS, values))
    database.close_all()
