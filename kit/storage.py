"""The database: its schema, one way to read and one to write, and what is wrong with it."""

import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import peewee
from peewee import Database, Model
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded
from playhouse.schema_diff import diff_models

from kit import files
from kit.errors import Locked
from kit.files import DAMAGED, NONE, Unusable, identity
from kit.sql import POOL_TIMEOUT, begin, connect, drop, execute, is_postgresql, limited, path

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# Anything that can be wrong with the database, and mistakes in our queries or in what a client sent.
ERRORS = (peewee.DatabaseError, peewee.InterfaceError, MaxConnectionsExceeded)
MISTAKES = (peewee.DataError, peewee.IntegrityError, peewee.ProgrammingError, peewee.NotSupportedError)
MISUSE = (1, 21, 25)  # SQLite: ERROR, MISUSE and RANGE
# PostgreSQL, "Error Codes". No right: someone has revoked it. No table, or no column: see _is_mistake.
LOCK_NOT_AVAILABLE, NO_RIGHT, ABSENT = "55P03", "42501", ("42P01", "42703")
FILES_INTERVAL = 0.2  # seconds
OPENING, CHECKING = "it is not open yet", "the database is being checked"
# What an index is made with; and what SQLite and PostgreSQL write differently.
INDEX = re.compile(r"CREATE (UNIQUE )?INDEX (\S+) ON (\S+) \(([^)]*)\)")
NOISE = re.compile(r'using btree|(\w+|"[^"]+")\.|["()\s]')
TWICE = """SELECT min(CAST(id AS text)), max(CAST(id AS text)) FROM {table}
    WHERE {key} IS NOT NULL GROUP BY {key} HAVING count(*) > 1 LIMIT 1"""


class NotWritten(Exception):
    """The database transaction was not stored."""


class InDoubt(Exception):
    """COMMIT failed, so it is not known whether the database transaction is stored."""


class Unreadable(Exception):
    """The database cannot be read now."""


FAULTS = (*ERRORS, sqlite3.Error, Unusable, NotWritten, InDoubt, OSError)


class Store:
    """A database with a pool of connections. One thread writes to it.

    `problem` says in one sentence why it cannot be written, `read_problem` why it cannot be read. Both are
    empty if the last write and the last read worked.
    """

    def __init__(self, url: str, connections: int, migrations: str, models: list[type[Model]]):
        self._url, self._connections = url, connections
        self.database = connect(url, connections)
        self.problem, self.read_problem = OPENING, ""
        self._migrations, self._models = migrations, models
        self._opened = False
        self._tried = threading.Event()  # to open it, for the first time
        self._unusable = ""  # why it must not be used until a restart
        self._in_doubt = False  # a COMMIT failed
        self.writing_since = 0.0  # time.monotonic() at the start of this database transaction; 0: none
        self._next_look = 0.0  # time.monotonic() from which on all four files are compared again
        self._files: dict[str, tuple[int, int]] = {}  # device and inode of what SQLite keeps: four files

    def read(self, function: Callable[Concatenate[Database, P], T], *values: P.args, **named: P.kwargs) -> T:
        """Call `function(database, …)`, which only reads; once more if the connection was broken.

        Raises Unreadable, or what the function raises.
        """
        self._tried.wait(POOL_TIMEOUT)
        if not self._opened:  # closing a connection would write an unchecked log into the file
            raise Unreadable(self.problem)

        def once() -> T:
            with self.database.connection_context(), limited(self.database):
                result = function(self.database, *values, **named)
            self.read_problem = ""
            return result

        try:
            return once()
        except ERRORS as error:
            if self._is_mistake(error):
                raise
        drop(self.database)
        try:
            return once()
        except ERRORS as error:
            drop(self.database)
            self.read_problem = self._sentence(error)
            raise Unreadable(self.read_problem) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One database transaction: on disk afterwards. Raises NotWritten or InDoubt if it is not.

        In WAL mode SQLite writes a transaction to the log before the fsync that makes it durable. If that
        fsync fails, it may or may not be found again: an error from COMMIT leaves that in doubt.
        """
        if self._in_doubt:  # until `recover` has emptied the log
            raise NotWritten(self.problem)
        locked = committing = False
        self.writing_since = time.monotonic()
        try:
            with begin(self.database):
                locked = True
                yield
                self._check_files(4 if self.writing_since > self._next_look else 2)
                committing = True
            self._check_files(2)  # the file and its log: in these is what is stored
        except FAULTS as error:
            if locked and getattr(cause(error), "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise Locked("A row is locked by another database session; nothing was stored.") from error
            if not committing and self._is_mistake(error):
                raise
            self._in_doubt |= committing
            self._let_go()
            raise (InDoubt if committing else NotWritten)(self._sentence(error)) from error
        finally:
            self.writing_since = 0.0
        self.problem = self._unusable

    def recover(self) -> None:
        """Find out with a write of our own whether the database can be written; if so, clear `problem`."""
        if self._unusable:
            return
        try:
            if not self._opened:
                self._open()
            self._note_files()
            if self._in_doubt:
                checkpoint(self.database)
                self._in_doubt = False
            with self.transaction():
                probe(self.database)
            log.info("the database can be written", extra={"event": "database_writable"})
        except FAULTS as error:
            self._let_go()
            self._unusable = str(error) if isinstance(error, Unusable) and not self._opened else ""
            self.fail(self._sentence(error))
        finally:
            self._tried.set()

    def _open(self) -> None:
        """Check the database, and bring its schema up to date."""
        if not is_postgresql(self.database):
            self.database = connect(self._url, self._connections)  # a link may lead elsewhere by now
            file = path(self.database)
            self._files = {file: identity(file)} if os.path.exists(file) else {}  # a restore may replace it
            if (left := files.left_behind(file)) and not files.is_open(file):  # else it is in use, not left
                self.problem = CHECKING
                self._tried.set()  # readers need not wait for it
                log.warning("%s was left, so %s", left[0], CHECKING, extra={"event": "database_checked"})
                files.check_together(file)
        prepare(self.database, self._migrations, self._models)
        self._opened = True
        if not is_postgresql(self.database):
            files.warn_of_other_names(path(self.database))

    @property
    def log_size(self) -> int:
        """The size of SQLite's log in bytes. An open reader lets it grow without limit."""
        with suppress(OSError):
            return 0 if is_postgresql(self.database) else os.path.getsize(f"{path(self.database)}-wal")
        return 0

    def close(self) -> None:
        """Close all connections. If PostgreSQL is frozen, a thread that connects keeps peewee's lock."""
        closer = threading.Thread(target=self.database.close_all, daemon=True)
        closer.start()
        closer.join(0.2 if is_postgresql(self.database) else None)

    def fail(self, problem: str) -> None:
        """Note why the database cannot be written."""
        if problem != self.problem:
            log.error("the database cannot be written: %s", problem, extra={"event": "database_unwritable"})
        self.problem = problem

    def _is_mistake(self, error: BaseException) -> bool:
        """True if this is about a query of ours, or about what a client sent, and not about the database."""
        first = cause(error)
        state, code, text = getattr(first, "sqlstate", ""), getattr(first, "sqlite_errorcode", 0), str(first)
        if state in ABSENT or re.match("no such (table|column)|.* has no column", text):
            with suppress(*ERRORS), self.database.connection_context():
                return not diff(self.database, self._models)  # or someone has changed the schema
            return False
        misuse = code & 0xFF in MISUSE and not text.startswith("cannot")  # end or begin a transaction
        return (misuse or isinstance(error, MISTAKES)) and state != NO_RIGHT

    def _sentence(self, error: BaseException) -> str:
        error = cause(error)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (11, 26):  # CORRUPT, NOTADB
            self._unusable = f"{DAMAGED} ({error})"
            self.fail(self._unusable)
        if code in (10, 14) and files.is_full(path(self.database)):  # IOERR, CANTOPEN
            return "the disk is full"
        return self._unusable or str(error).partition("\n")[0]  # PostgreSQL goes on about the statement

    def _let_go(self) -> None:
        """Close the connections, as they may be broken. SQLite removes its log with the last one."""
        try:
            self._check_files()
            kept = [name for name in self._files if not name.endswith(("-wal", "-shm"))]
            self._files = {name: self._files[name] for name in kept}
        except Unusable:
            # This connection still has a log that was removed: save what is only there. A new one has not.
            if not self.database.is_closed():
                with suppress(*ERRORS):
                    execute(self.database, "PRAGMA wal_checkpoint(FULL)")
            if os.path.exists(f"{path(self.database)}-journal"):
                return  # a foreign one; if no connection were open, the next would write it into the file
        drop(self.database)

    def _note_files(self) -> None:
        """Note which files these are, unless that was noted before."""
        if not is_postgresql(self.database):
            self._check_files()
            execute(self.database, "SELECT 1 FROM sqlite_schema")  # now the log exists
            file = path(self.database)
            names = [file + end for end in ("", "-wal", "-shm", "-journal")]
            self._files = {name: self._files.get(name) or identity(name) for name in names}
            if NONE in list(self._files.values())[:3]:
                raise peewee.OperationalError(f"SQLite cannot keep {file}-wal and -shm beside the file")

    def _check_files(self, count: int = 4) -> None:
        """Raise Unusable if one of the first `count` files is no longer the one that was opened."""
        if count == 4:  # the last two do no harm at once, and each comparison takes time
            self._next_look = time.monotonic() + FILES_INTERVAL
        for name, noted in islice(self._files.items(), count):
            if identity(name) != noted:
                what = "put there" if noted == NONE else "removed or replaced"
                raise Unusable(f"{name} was {what} while the service runs")


def cause(error: BaseException) -> BaseException:
    """The first error. (If SQLite rolled back by itself, peewee's rollback fails.)"""
    while error.__context__:
        error = error.__context__
    return error


def prepare(database: Any, migrations: str, models: list[type[Model]]) -> None:
    """Create the file if there is none, bring the schema up to date, and check it against the models.

    Several processes may do this at once; one of them migrates. Raises Unusable, OSError, or one of ERRORS.
    """
    if not is_postgresql(database):
        files.create(path(database))
    database.connect(reuse_if_open=True)
    if is_postgresql(database):
        found = database.connection().info.parameter_status("server_encoding")
        if found != "UTF8":
            raise Unusable(f"its encoding is {found}, but must be UTF8: docs/operations.md converts it")
    with begin(database):
        runner = Runner(database, migrations)
        if later := [migration.name for migration in runner.status() if migration.path is None]:
            raise Unusable(f"the schema is of a later release, which has the migration {later[0]}")
        runner.up()
        # playhouse says what would mend it, such as "add column station.description".
        if difference := diff(database, models):
            raise Unusable("the schema is not that of this release: " + "; ".join(difference))
        mend_indexes(database, runner)


def diff(database: Database, models: list[type[Model]]) -> list[str]:
    """How the tables and columns differ from the models."""
    return str(diff_models(database, models)._replace(add_indexes=[], drop_indexes=[])).splitlines()


def mend_indexes(database: Database, runner: Runner) -> None:
    """Create each index of ours that is missing or has another definition; raises Unusable if it cannot be.

    The migrations that are applied say which there are, in a database in memory. Others are ignored.
    """
    applied, ours = runner.applied(), Runner(peewee.SqliteDatabase(":memory:"), runner.directory)
    with ours.database.connection_context():
        for migration in ours.migrations():
            if migration.name in applied:
                migration.load().up(ours.migrator, ours.database)
        wanted = indexes(ours.database)
    found = indexes(database)
    for statement in [wanted[plain] for plain in wanted if plain not in found]:
        ((unique, name, table, key),) = INDEX.findall(statement)
        same = TWICE.format(table=table, key=key)
        for pair in execute(database, same) if unique else []:
            raise Unusable("rows {} and {} of {} have the same {}: change one".format(*pair, table, key))
        execute(database, f"DROP INDEX IF EXISTS {name}")
        execute(database, statement)
        log.warning("the index %s was missing and is created again", name, extra={"event": "index_created"})


def indexes(database: Database) -> dict[str, str]:
    """The statement that makes each index, by its words without what the two databases write differently."""
    statement = "SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql NOT NULL"
    if is_postgresql(database):
        statement = """SELECT pg_get_indexdef(indexrelid) FROM pg_index
            WHERE indisvalid AND indrelid >= 16384 AND pg_table_is_visible(indrelid)"""
    return {NOISE.sub("", sql.lower()): sql for (sql,) in execute(database, statement)}


def checkpoint(database: Database) -> None:
    """After a COMMIT that failed: write all of SQLite's log to the file, so that what is stored is known.

    Raises OperationalError while that is not possible. PostgreSQL settles this itself.
    """
    if not is_postgresql(database):
        state = execute(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        if state != [(0, 0, 0)]:
            why = "another process is reading the database" if state[0][0] else str(state[0])
            raise peewee.OperationalError(f"the log of the database cannot be emptied: {why}")


def probe(database: Database) -> None:
    """Write something. (An empty transaction, or an UPDATE to the same value, adds nothing to the log.)"""
    if is_postgresql(database):  # this takes no lock that someone may hold
        execute(database, "SELECT pg_logical_emit_message(true, 'energy2go', '')")
    else:
        ((version,),) = execute(database, "PRAGMA user_version")
        execute(database, f"PRAGMA user_version = {version % 1_000_000 + 1}")


def ping(database: Database) -> None:
    """Raise one of ERRORS if the database does not answer."""
    execute(database, "SELECT 1 FROM schema_migration WHERE id = 0")
