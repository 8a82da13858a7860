"""The database: its connections, its schema, one way to read and one to write, and what is wrong with it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, unquote
from uuid import UUID

import peewee
from peewee import Database, Model
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase, PooledSqliteDatabase
from playhouse.schema_diff import diff_models

from kit.errors import NotStored

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# Anything that can be wrong with the database, and mistakes of our own in its use.
ERRORS = (peewee.DatabaseError, peewee.InterfaceError, MaxConnectionsExceeded)
MISTAKES = (peewee.DataError, peewee.IntegrityError, peewee.ProgrammingError, peewee.NotSupportedError)
# Not a mistake: someone has revoked a right or changed the schema (PostgreSQL, "Error Codes").
ALTERED = ("42501", "42P01", "42703")
LOCK_NOT_AVAILABLE = "55P03"
PATIENCE = 5  # seconds that a thread waits for a connection, or until the database is open
PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1, "journal_size_limit": 2**23}
# A server that vanishes without a word is noticed within eleven seconds (libpq, "Parameter Key Words").
NETWORK = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
NETWORK |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
WRITERS = 20260328  # advisory lock id that serialises the writers of one PostgreSQL database
LONGEST_READ = 5  # seconds
LONGEST_WRITE = 5.0  # seconds; SQLite waits as long for a lock
LONGEST_ROW_LOCK = 0.2  # seconds
OPENING = "it is not open yet"
DAMAGED = "the file is damaged, as when a backup is copied over a file but its -wal is left"


class Unusable(Exception):
    """The database must not be used until someone has looked at it."""


class NotWritten(Exception):
    """The database transaction was not stored."""


class InDoubt(Exception):
    """COMMIT failed, so it is not known whether the database transaction is stored."""


FAULTS = (*ERRORS, Unusable, NotWritten, InDoubt, OSError)


class Store:
    """A database with a pool of connections. One thread writes to it.

    `problem` says in one sentence why it cannot be written, `read_problem` why it cannot be read. Both are
    empty if the last write and the last read worked.
    """

    def __init__(self, url: str, connections: int, migrations: str, models: list[type[Model]]):
        self.database = connect(url, connections)
        self.problem, self.read_problem = OPENING, ""
        self._migrations, self._models = migrations, models
        self._opened = False
        self._tried = threading.Event()  # to open it, for the first time
        self._unusable = ""  # why it must not be used until a restart
        self._in_doubt = False  # a COMMIT failed
        self.writing_since = 0.0  # time.monotonic() at the start of this database transaction; 0: none
        self._files: dict[str, tuple[int, int]] = {}  # device and inode of the file and of its log

    def read(self, function: Callable[Concatenate[Database, P], T], *values: P.args, **named: P.kwargs) -> T:
        """Call `function(database, …)`, which only reads; once more if the connection was broken."""
        self._tried.wait(PATIENCE)
        if not self._opened:  # closing a connection would write an unchecked log into the file
            raise peewee.OperationalError(self.problem)

        def once() -> T:
            with self.database.connection_context(), limited(self.database):
                result = function(self.database, *values, **named)
            self.read_problem = ""
            return result

        with suppress(*ERRORS):
            return once()
        drop(self.database)
        try:
            return once()
        except ERRORS as error:
            drop(self.database)
            self.read_problem = self._sentence(error)
            raise

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
            with self.database.atomic():
                lock(self.database)
                locked = True
                yield
                self._check_files()
                committing = True
            self._check_files()
        except FAULTS as error:
            state = getattr(getattr(error, "orig", None), "sqlstate", None)
            if locked and state == LOCK_NOT_AVAILABLE:
                raise NotStored(
                    "A row is locked by another database session; nothing was stored."
                ) from error
            if isinstance(error, MISTAKES) and state not in ALTERED:
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
                if not is_postgresql(self.database):  # a restore may replace the file before it is open
                    file = path(self.database)
                    self._files = {file: identity(file)} if os.path.exists(file) else {}
                prepare(self.database, self._migrations, self._models)
                self._opened = True
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

    @property
    def log_size(self) -> int:
        """The size of SQLite's log in bytes. An open reader lets it grow without limit."""
        with suppress(OSError):
            return 0 if is_postgresql(self.database) else os.path.getsize(f"{path(self.database)}-wal")
        return 0

    def close(self) -> None:
        """Close all connections."""
        self.database.close_all()

    def fail(self, problem: str) -> None:
        """Note why the database cannot be written."""
        if problem != self.problem:
            log.error("the database cannot be written: %s", problem, extra={"event": "database_unwritable"})
        self.problem = problem

    def _sentence(self, error: BaseException) -> str:
        # If SQLite rolled back by itself, peewee's rollback fails. The first error says why.
        while error.__context__:
            error = error.__context__
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (11, 26):  # CORRUPT, NOTADB
            self._unusable = f"{DAMAGED} ({error})"
            self.fail(self._unusable)
        return self._unusable or str(error).partition("\n")[0]  # PostgreSQL goes on about the statement

    def _let_go(self) -> None:
        """Close the connections, as they may be broken. SQLite removes its log with the last one."""
        try:
            self._check_files()
            self._files = {name: noted for name, noted in self._files.items() if not name.endswith("-wal")}
        except Unusable:
            # This connection still has a log that was removed: save what is only there. A new one has not.
            if not self.database.is_closed():
                with suppress(*ERRORS):
                    execute(self.database, "PRAGMA wal_checkpoint(FULL)")
        drop(self.database)

    def _note_files(self) -> None:
        """Note which files these are, unless that was noted before."""
        if not is_postgresql(self.database):
            self._check_files()
            execute(self.database, "SELECT 1 FROM sqlite_schema")  # now the log exists
            file = path(self.database)
            self._files = {name: identity(name) for name in (file, f"{file}-wal")} | self._files

    def _check_files(self) -> None:
        """Raise Unusable if a file is no longer the one that was opened."""
        for name, noted in self._files.items():
            if identity(name) != noted:
                raise Unusable(f"{name} was removed or replaced while the service runs")


def connect(url: str, connections: int) -> Any:
    """A peewee database with a pool of so many connections; opens none."""
    if url.startswith("sqlite:///"):
        file = unquote(url.removeprefix("sqlite:///"))
        # mode=rw: a connection never creates the file, so none can stand in for one that was removed.
        # IMMEDIATE: a transaction that reads first and writes later would fail if another process writes.
        options: dict[str, Any] = {"pragmas": PRAGMAS, "lock_type": "IMMEDIATE", "check_same_thread": False}
        uri = f"file://{quote(os.path.abspath(file))}?mode=rw"
        return PooledSqliteDatabase(uri, uri=True, max_connections=connections, timeout=PATIENCE, **options)
    options = {name: value for name, value in NETWORK.items() if f"{name}=" not in url}
    url = "postgresql" + url.removeprefix("postgresql").removeprefix("postgres")
    options |= {"max_connections": connections, "timeout": PATIENCE}
    return PooledPostgresqlDatabase(url, prefer_psycopg3=True, **options)


def is_postgresql(database: Database) -> bool:
    """True for PostgreSQL, False for SQLite."""
    return isinstance(database, peewee.PostgresqlDatabase)


def path(database: Any) -> str:
    """The path of a SQLite database's file."""
    return unquote(database.database.removeprefix("file://").removesuffix("?mode=rw"))


def identity(name: str) -> tuple[int, int]:
    """Device and inode of a file; zeros if there is none."""
    try:
        status = os.stat(name)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def prepare(database: Database, migrations: str, models: list[type[Model]]) -> None:
    """Create the file if there is none, bring the schema up to date, and check it against the models.

    Several processes may do this at once; one of them migrates. Raises Unusable, OSError, or one of ERRORS.
    """
    if not is_postgresql(database):
        check_file(database)
    with database.atomic():
        lock(database)
        runner = Runner(database, migrations)
        if later := [migration.name for migration in runner.status() if migration.path is None]:
            raise Unusable(f"the schema is of a later release, which has the migration {later[0]}")
        runner.up()
    # playhouse says what would mend it, such as "add column station.description".
    if difference := diff_models(database, models)._replace(add_indexes=[], drop_indexes=[]):
        raise Unusable("the schema is not that of this release: " + "; ".join(str(difference).splitlines()))


def check_file(database: Database) -> None:
    """Create the file if there is none. If a process left its log behind, check the file first."""
    file = path(database)
    left = os.path.exists(f"{file}-wal") and os.path.getsize(f"{file}-wal") > 0
    if not os.path.isdir(folder := os.path.dirname(file) or "."):
        raise FileNotFoundError(f"the folder {folder} does not exist")
    with suppress(FileExistsError):
        # Never open a file that exists: closing it would end all locks that this process holds on it.
        open(file, "xb").close()
    if not os.path.isfile(file) or not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(f"{file} is not a file that can be read and written")
    if left:
        # mode=ro: closing it does not write the log into the file.
        reader = peewee.SqliteDatabase(database.database.replace("mode=rw", "mode=ro"), uri=True)
        with reader.connection_context():
            if execute(reader, "PRAGMA quick_check(1)") != [("ok",)]:
                raise Unusable(DAMAGED)


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
    if is_postgresql(database):
        execute(database, "UPDATE schema_migration SET applied = applied")
    else:
        ((version,),) = execute(database, "PRAGMA user_version")
        execute(database, f"PRAGMA user_version = {version % 1_000_000 + 1}")


def lock(database: Database) -> None:
    """Make every other writer wait until this database transaction ends. (SQLite: BEGIN IMMEDIATE does.)

    From here on, this one waits only a moment for a row that some other session has locked. If this process
    freezes, the server ends the session, so that other replicas can write.
    """
    if is_postgresql(database):
        limit = "set_config('{}', '{}s', true)".format
        before = limit("lock_timeout", LONGEST_WRITE)
        before += ", " + limit("idle_in_transaction_session_timeout", LONGEST_WRITE)
        after = limit("lock_timeout", LONGEST_ROW_LOCK)
        execute(database, f"SELECT {before}, pg_advisory_xact_lock(?), {after}", WRITERS)


@contextmanager
def limited(database: Any) -> Iterator[None]:
    """Let no statement in this block run for longer than LONGEST_READ. It must only read."""
    if not is_postgresql(database):
        connection, until = database.connection(), time.monotonic() + LONGEST_READ
        connection.set_progress_handler(lambda: time.monotonic() > until, 100_000)  # steps, about 1 ms
        try:
            yield
        finally:
            connection.set_progress_handler(None, 0)
        return
    # Only for this transaction: PgBouncer gives the same session to other clients afterwards.
    execute(database, f"BEGIN READ ONLY; SET LOCAL statement_timeout = '{LONGEST_READ}s'")
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
    """An id as the database returns it. SQLite knows no such type and stores 32 hexadecimal digits."""
    return found if isinstance(found, UUID) else UUID(found)


def check(database: Database) -> None:
    """Raise one of ERRORS if the database does not answer."""
    execute(database, "SELECT 1 FROM schema_migration WHERE id = 0")
