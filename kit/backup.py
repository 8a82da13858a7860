"""Back up the SQLite database while the service runs, and restore a backup while no process has it open.

`python -m kit.backup` writes a copy beside the database and prints its name. `python -m kit.backup restore
FILE` checks a copy and puts its contents in the place of the database's.
"""

import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from kit.settings import ROOT, load

PATIENCE = 10  # seconds that a backup waits for a lock


class Refused(Exception):
    """This cannot be done; the text says why."""


def backup(database: Path) -> Path:
    """Write a copy of the database beside it, while others use it; returns its name once it is on disk."""
    if not database.is_file():
        raise Refused(f"there is no file {database}")
    with connected(database, "ro", PATIENCE) as source:
        return vacuum(source, database, "")


def vacuum(source: sqlite3.Connection, database: Path, kind: str) -> Path:
    """Write all that a connection sees to a new file beside the database; returns its name."""
    part, name = database.with_name(f"{database.stem}-{os.getpid()}.part"), unused_name(database, kind)
    try:
        source.execute("VACUUM INTO ?", (str(part),))
        shutil.copymode(database, part)
        sync(part)
        part.rename(name)
        sync(name.parent)
    finally:
        part.unlink(missing_ok=True)
    return name


def restore(file: Path, database: Path) -> Path | None:
    """Replace the contents of the database by those of a backup; returns where the old ones are kept.

    SQLite copies the pages in one transaction, so a restore that dies leaves the old contents.
    """
    if not database.parent.is_dir():
        raise Refused(f"the folder {database.parent} does not exist")
    copy = database.with_name(f"{database.stem}-{os.getpid()}-copy.part")
    try:
        for end in ("", "-wal"):  # a file that was copied by hand may have a log
            if not end or os.path.exists(f"{file}-wal"):
                with open(f"{file}{end}", "rb") as source, open(f"{copy}{end}", "wb") as target:
                    shutil.copyfileobj(source, target)
        with connected(copy, "rw") as source:
            check(source)
            kept = keep(database) if database.exists() else None
            if not kept:
                Path(f"{database}-wal").unlink(missing_ok=True)  # of a file that was removed
            with exclusively(database) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode = WAL")
        sync(database.parent)
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            Path(f"{copy}{end}").unlink(missing_ok=True)
    return kept


def keep(database: Path) -> Path:
    """Copy the database aside, byte by byte with its log if it is damaged; returns the name of the copy."""
    with suppress(sqlite3.DatabaseError):
        with connected(database, "ro") as source:
            sound = source.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
        if sound:
            with exclusively(database) as source:
                return vacuum(source, database, "replaced-")
    kept = unused_name(database, "replaced-")
    for end in ("", "-wal"):
        with suppress(FileNotFoundError):
            os.rename(f"{database}{end}", f"{kept}{end}")
    return kept


@contextmanager
def exclusively(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that is the only one; raises Refused if another process has the database open."""
    with connected(database, "rwc") as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise Refused(f"a process has {database} open, so stop the service first") from None
        yield connection


def check(database: sqlite3.Connection) -> None:
    """Raise Refused, or sqlite3.DatabaseError, unless it is whole and this release can use it."""
    ((found,),) = database.execute("PRAGMA integrity_check(1)").fetchall()
    if found != "ok":
        raise Refused(f"the file is damaged: {' '.join(found.split())}")
    try:
        applied = {name for (name,) in database.execute("SELECT name FROM schema_migration")}
    except sqlite3.OperationalError:
        raise Refused("it is not a database of this service") from None
    if later := applied - {path.stem for path in (ROOT / "migrations").glob("*.py")}:
        raise Refused(f"it is of a later release, which has the migration {min(later)}")


def unused_name(database: Path, kind: str) -> Path:
    """A name with the time (UTC) that no file has yet. It has no colon, so it works everywhere."""
    while True:
        name = database.with_name(f"{database.stem}-{kind}{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db")
        if not name.exists():
            return name
        time.sleep(0.1)


@contextmanager
def connected(file: Path, mode: str, patience: float = 0) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(os.path.abspath(file))}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None)) as connection:
        yield connection


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def main(arguments: list[str]) -> None:
    """Back up, or restore a file; raises SystemExit with a sentence if that does not work."""
    url = load().database_url
    if not url.startswith("sqlite"):
        raise SystemExit("DATABASE_URL: is PostgreSQL. Use pg_dump and pg_restore, see docs/operations.md.")
    database = Path(unquote(url.removeprefix("sqlite:///")))
    restoring, file = arguments[:1] == ["restore"], " ".join(arguments[1:])
    if arguments and not (restoring and file):
        raise SystemExit("FILE: name the backup, as in: make restore FILE=var/energy2go-20261125T082400Z.db")
    try:
        if not restoring:
            print(backup(database))
        else:
            kept = restore(Path(file), database)
            print(f"{database} is restored." + f" The file that it replaced is {kept}." * bool(kept))
    except (Refused, OSError, sqlite3.Error) as error:
        why = str(error)
        if isinstance(error, OSError):
            why = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        what = f"FILE={file}: nothing was restored" if restoring else "no backup was made"
        raise SystemExit(f"{what}: {why}.") from None


if __name__ == "__main__":
    main(sys.argv[1:])
