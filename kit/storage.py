"""The database: its schema, one way to read, one way to write, and the reason if either fails."""

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import peewee
from peewee import Database
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded

from kit import files
from kit.clock import SECOND, Clock
from kit.errors import Locked
from kit.files import DAMAGED, NONE, Unusable, identity
from kit.sql import POOL_TIMEOUT, begin, connect, drop, execute, is_postgresql, limited, path

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

ERRORS = (peewee.DatabaseError, peewee.InterfaceError, MaxConnectionsExceeded)
MISTAKES = (peewee.DataError, peewee.IntegrityError, peewee.ProgrammingError, peewee.NotSupportedError)
LOCK_NOT_AVAILABLE, INSUFFICIENT_PRIVILEGE = "55P03", "42501"  # PostgreSQL
DAMAGE, DISK = ("SQLITE_CORRUPT", "SQLITE_NOTADB"), ("SQLITE_IOERR", "SQLITE_CANTOPEN")
FILES_INTERVAL = SECOND // 5  # for all four files
TWINS = """SELECT min(CAST(id AS text)), max(CAST(id AS text)) FROM "{table}"
    WHERE {key} IS NOT NULL GROUP BY {key} HAVING count(*) > 1 LIMIT 1"""
CHECK_TIMEOUT = 1.0  # seconds that requests wait for a check of the database; then they are refused at once
OPENING, CHECKING = "it is not open yet", "the database is being checked"


class NotWritten(Exception):
    """The database transaction wasn't stored."""


class InDoubt(Exception):
    """COMMIT failed; the database transaction may or may not be stored."""


class Unreadable(Exception):
    """The database can't be read now."""


FAULTS = (*ERRORS, sqlite3.Error, Unusable, NotWritten, InDoubt, OSError)


class Store:
    """A database and at most `pool` connections to it. One thread writes to it.

    `problem` is the reason, in one sentence, why the last write failed, or empty; `read_problem` is the same
    for the last read.
    """

    def __init__(self, url: str, pool: int, migrations: str, clock: Clock | None = None):
        self._url, self._pool, self.clock = url, pool, clock or Clock()
        self.database = connect(url, pool)
        self.problem, self.read_problem = OPENING, ""
        self._migrations, self._opened = migrations, False
        self._tried = threading.Event()  # the first attempt to open it has ended
        self._unusable = ""  # why we won't use it again until a restart
        self._in_doubt = False  # a COMMIT failed
        self.writing_since = 0  # when this database transaction began; 0: none
        self._next_comparison = 0  # when we compare all four files again
        self._files: dict[str, tuple[int, int]] = {}  # device and inode of SQLite's four files

    def read(self, function: Callable[Concatenate[Database, P], T], *values: P.args, **named: P.kwargs) -> T:
        """Call `function(database, …)`, which only reads; if the connection was broken, call it once more.

        Raises Unreadable, or the function's own error.
        """
        self._tried.wait(POOL_TIMEOUT)
        if not self._opened:  # closing a connection would write an unchecked log into the file
            raise Unreadable(self.problem)
        again = False
        while True:
            try:
                with self.database.connection_context(), limited(self.database):
                    result = function(self.database, *values, **named)
                self.read_problem = ""
                return result
            except ERRORS as error:
                if self._is_mistake(error):
                    raise
                drop(self.database)
                if again:
                    self.read_problem = self._reason(error)
                    raise Unreadable(self.read_problem) from error
                again = True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One database transaction, which is on disk at the end; else raises NotWritten or InDoubt.

        In WAL mode SQLite writes a transaction to the log before the fsync that makes it durable. If that
        fsync fails, COMMIT fails, but a restart may still find the transaction in the log.
        """
        if self._in_doubt:  # `recover` empties the log first
            raise NotWritten(self.problem)
        locked = committing = False
        self.writing_since = self.clock.steady()
        try:
            with begin(self.database):
                locked = True
                yield
                self._compare_files(4 if self.writing_since > self._next_comparison else 2)
                committing = True
            self._compare_files(2)  # the file and its log hold all that is stored
        except FAULTS as error:
            if locked and not committing and cause(error)[1] == LOCK_NOT_AVAILABLE:
                raise Locked("A row is locked by another database session; nothing was stored.") from error
            if not committing and self._is_mistake(error):
                raise
            self._in_doubt |= committing
            self._let_go()
            raise (InDoubt if committing else NotWritten)(self._reason(error)) from error
        finally:
            self.writing_since = 0
        self.problem = self._unusable

    def recover(self) -> None:
        """Open the database unless it is open, write to it, and clear `problem` if that works."""
        if self._unusable:
            return
        try:
            if not self._opened:
                self._open()
            self._note_files()
            if self._in_doubt:  # the log may hold that transaction
                checkpoint(self.database)
                self._in_doubt = False
            with self.transaction():
                probe(self.database)
            log.info("the database can be written", extra={"event": "database_writable"})
        except FAULTS as error:
            self._let_go()
            self.fail(self._reason(error))
        finally:
            self._tried.set()

    def _open(self) -> None:
        """Check the database, and bring its schema up to date."""
        if not is_postgresql(self.database):
            self.database = connect(self._url, self._pool)  # a link may lead elsewhere by now
            file = path(self.database)
            self._files = {file: identity(file)} if os.path.exists(file) else {}  # a restore may replace it
            if (left := files.left_behind(file)) and not files.is_open(file):
                log.warning("%s was left, so %s", left[0], CHECKING, extra={"event": "database_checked"})
                refusing = threading.Timer(CHECK_TIMEOUT, self._refuse_meanwhile)
                refusing.start()
                try:
                    files.check_together(file)
                finally:
                    refusing.cancel()
                    refusing.join()
        prepare(self.database, self._migrations)
        self._opened = True
        if not is_postgresql(self.database):
            files.warn_of_mount(path(self.database))

    def _refuse_meanwhile(self) -> None:
        """From now on, refuse reads and writes at once while the database is being checked."""
        self.problem = CHECKING
        self._tried.set()

    def close(self) -> None:
        """Close all connections. If PostgreSQL is frozen, a thread that connects keeps peewee's lock."""
        if is_postgresql(self.database):
            closer = threading.Thread(target=self.database.close_all, daemon=True)
            closer.start()
            closer.join(0.2)
        else:
            self.database.close_all()

    def fail(self, problem: str) -> None:
        """Note why the database can't be written."""
        if problem != self.problem:
            log.error("the database cannot be written: %s", problem, extra={"event": "database_unwritable"})
        self.problem = problem

    def _is_mistake(self, error: BaseException) -> bool:
        """True if one of our queries or a client's value is wrong, but not the database or its schema."""
        first, code = cause(error)
        wrong = code == "SQLITE_ERROR" and not str(first).startswith("cannot")  # begin, commit or roll back
        if not (wrong or isinstance(error, MISTAKES)) or code == INSUFFICIENT_PRIVILEGE:
            return False
        migrations = Runner(self.database, self._migrations).migrations()
        with suppress(*ERRORS), self.database.connection_context(), made(migrations) as ours:
            return not differences(self.database, ours)
        return False

    def _reason(self, error: BaseException) -> str:
        """The reason for an error in one sentence. If the database is unusable, that stays the reason."""
        first, code = cause(error)
        if code.startswith(DISK) and files.is_full(path(self.database)):
            return "the disk is full"
        if isinstance(first, Unusable) or code.startswith(DAMAGE):
            self._unusable = str(first) if isinstance(first, Unusable) else DAMAGED.format(first)
            self.fail(self._unusable)
        return self._unusable or str(first).partition("\n")[0]  # PostgreSQL adds the statement

    def _let_go(self) -> None:
        """Close the connections, as they may be broken. SQLite removes its log with the last one."""
        try:
            self._compare_files()
            for end in ("-wal", "-shm"):
                self._files.pop(f"{path(self.database)}{end}", None)
        except FileNotFoundError:
            # If the log was removed, only this connection can still write it into the file.
            if not self.database.is_closed():
                with suppress(*ERRORS):
                    execute(self.database, "PRAGMA wal_checkpoint(FULL)")
            if os.path.exists(f"{path(self.database)}-journal"):
                return  # while a connection is open, SQLite won't write a foreign journal into the file
        drop(self.database)

    def _note_files(self) -> None:
        """Note each file's identity, once."""
        if not is_postgresql(self.database):
            self._compare_files()
            execute(self.database, "SELECT 1 FROM sqlite_schema")  # now the log exists
            file = path(self.database)
            names = [file + end for end in ("", "-wal", "-shm", "-journal")]
            self._files = {name: self._files.get(name) or identity(name) for name in names}
            if NONE in list(self._files.values())[:3]:
                raise peewee.OperationalError(f"SQLite cannot keep {file}-wal and -shm beside the file")

    def _compare_files(self, count: int = 4) -> None:
        """Raise FileNotFoundError if one of the first `count` files isn't the file we opened."""
        if count == 4:  # the last two do no harm at once, and each comparison takes time
            self._next_comparison = self.clock.steady() + FILES_INTERVAL
        for name, noted in islice(self._files.items(), count):
            if identity(name) != noted:
                what = "put there" if noted == NONE else "removed or replaced"
                raise FileNotFoundError(f"{name} was {what} while the service runs")


def cause(error: BaseException) -> tuple[BaseException, str]:
    """The first error and its code. (If SQLite rolls back by itself, peewee's rollback fails too.)"""
    while error.__context__:
        error = error.__context__
    return error, getattr(error, "sqlstate", "") or getattr(error, "sqlite_errorname", "")


def prepare(database: Any, migrations: str) -> None:
    """Create the file if it is missing, bring the schema up to date, and check it.

    Several processes may do this at once; one of them migrates. Raises Unusable, OSError, or one of ERRORS.
    """
    if not is_postgresql(database):
        files.create(path(database))
    elif (found := execute(database, "SHOW server_encoding")[0][0]) != "UTF8":
        raise Unusable(f"its encoding is {found}, but must be UTF8: docs/operations.md converts it")
    with begin(database):
        runner = Runner(database, migrations)
        if later := [migration.name for migration in runner.status() if migration.path is None]:
            raise Unusable(f"the schema is of a later release, which has the migration {later[0]}")
        runner.up()
        mend_schema(database, runner)


def mend_schema(database: Any, runner: Runner) -> None:
    """Check tables and columns, and create missing indexes. Raises Unusable if the schema stays wrong."""
    with made(runner.migrations()[: len(runner.applied())]) as ours:
        if difference := differences(database, ours):
            raise Unusable("the schema is not that of this release: " + "; ".join(difference))
        wanted = indexes(ours)
    for index in wanted.keys() - indexes(database).keys():
        name, table, unique, *_, key = index
        for first, last in execute(database, TWINS.format(table=table, key=key)) if unique else []:
            raise Unusable(f'rows {first} and {last} of "{table}" have the same "{key}": change one')
        execute(database, f'DROP INDEX IF EXISTS "{name}"')
        execute(database, wanted[index])
        text = 'the index "%s" was missing and is created again'
        log.warning(text, name, extra={"event": "index_created"})


@contextmanager
def made(migrations: list[Any]) -> Iterator[Database]:
    """A database in memory in which these migrations ran, so it has all tables and indexes of ours."""
    ours = Runner(peewee.SqliteDatabase(":memory:"))
    with ours.database.connection_context():
        for migration in migrations:
            migration.load().up(ours.migrator, ours.database)
        yield ours.database


def differences(database: Any, ours: Any) -> list[str]:
    """Changes that our tables lack, such as "add column station.description". We ignore other tables."""
    tables = [table for table in ours.get_tables() if table != "sqlite_sequence"]
    wanted, found = (
        {f"{table}.{column.name}" for table in tables for column in one.get_columns(table)}
        for one in (ours, database)
    )
    missing = [f"add column {name}" for name in sorted(wanted - found)]
    return missing + [f"drop column {name}" for name in sorted(found - wanted)]


def indexes(database: Any) -> dict[tuple[Any, ...], str]:
    """The statement that creates each index, by its name, table, uniqueness and columns."""
    found = [index for table in database.get_tables() for index in database.get_indexes(table) if index.sql]
    return {(index.name, index.table, index.unique, *index.columns): index.sql for index in found}


def checkpoint(database: Database) -> None:
    """Write all of SQLite's log to the file, or raise OperationalError. PostgreSQL needs no help."""
    if not is_postgresql(database):
        state = execute(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        if state != [(0, 0, 0)]:
            why = "another process is reading the database" if state[0][0] else str(state[0])
            raise peewee.OperationalError(f"the log of the database cannot be emptied: {why}")


def probe(database: Database) -> None:
    """Write something new. (An empty transaction or an unchanged value wouldn't reach the log.)"""
    if is_postgresql(database):  # this takes no lock that someone may hold
        execute(database, "SELECT pg_logical_emit_message(true, 'energy2go', '')")
    else:
        ((version,),) = execute(database, "PRAGMA user_version")
        execute(database, f"PRAGMA user_version = {version % 1_000_000 + 1}")


def ping(database: Database) -> None:
    """Raise one of ERRORS if the database doesn't answer."""
    execute(database, "SELECT 1 FROM schema_migration WHERE id = 0")


def sizes(database: Database) -> dict[str, int]:
    """Bytes in the database; for SQLite also in its log, which an open reader lets grow, and free."""
    if is_postgresql(database):
        ((size,),) = execute(database, "SELECT pg_database_size(current_database())")
        return {"database": size}
    found, file = dict[str, int](), path(database)
    with suppress(OSError):  # a file may be removed at any moment
        found["disk_free"] = shutil.disk_usage(os.path.dirname(file)).free
        found["database"] = os.path.getsize(file)
        found["wal"] = os.path.getsize(f"{file}-wal")
    return found
