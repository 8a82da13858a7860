"""Back up the SQLite database while the service runs, and restore a backup while no process has it open.

`python -m kit.backup` writes a copy beside the database and prints its name. `python -m kit.backup restore
FILE` checks a copy and puts it in the place of the database.
"""

import fcntl
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

# Every process that has the database open in WAL mode holds a lock on some of these bytes (SQLite, "os.h").
LOCKED_BYTES, FIRST_LOCKED_BYTE = 512, 0x40000000
PATIENCE = 10  # seconds that a backup waits for a lock


class Refused(Exception):
    """This cannot be done; the text says why."""


def backup(database: Path) -> Path:
    """Write a copy of the database beside it, while others use it; returns its name once it is on disk."""
    if not database.is_file():
        raise Refused(f"there is no file {database}")
    with partial(database) as copy:
        # mode=ro: closing it does not write a log that was left behind into the file.
        with closing(connect(database, "ro", PATIENCE)) as source:
            source.execute("VACUUM INTO ?", (str(copy),))
        sync(copy)
        name = unused_name(database, "")
        copy.rename(name)
    sync(name.parent)
    return name


def restore(file: Path, database: Path) -> Path | None:
    """Put a copy of a backup in the place of the database; returns where the replaced file is kept."""
    with partial(database) as copy:
        for end in ("", "-wal"):  # a file that was copied by hand may have a log
            if not end or os.path.exists(f"{file}-wal"):
                with open(f"{file}{end}", "rb") as source, open(f"{copy}{end}", "wb") as target:
                    shutil.copyfileobj(source, target)
        check(copy)
        sync(copy)
        kept = replace(database, copy) if database.exists() else None
        if not kept:
            remove_log(database)
            copy.rename(database)
    sync(database.parent)
    return kept


def replace(database: Path, copy: Path) -> Path:
    """Put this file in the place of the database; returns where the replaced one is kept."""
    fold(database)
    with locked(database):
        owner, kept = database.stat(), unused_name(database, "replaced-")
        if (owner.st_uid, owner.st_gid) != (copy.stat().st_uid, copy.stat().st_gid):
            os.chown(copy, owner.st_uid, owner.st_gid)
        os.link(database, kept)
        with suppress(FileNotFoundError):  # only a damaged file still has a log
            os.rename(f"{database}-wal", f"{kept}-wal")
        remove_log(database)
        sync(database.parent)
        copy.rename(database)
    return kept


def check(file: Path) -> None:
    """Raise Refused, or sqlite3.DatabaseError, unless the file is whole and this release can use it."""
    known = {path.stem for path in (ROOT / "migrations").glob("*.py")}
    with closing(connect(file, "rw", 0)) as database:
        database.execute("PRAGMA journal_mode = DELETE")  # if it has a log, write that into the file
        ((found,),) = database.execute("PRAGMA integrity_check(1)").fetchall()
        if found != "ok":
            raise Refused(f"the file is damaged: {' '.join(found.split())}")
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
        names = "SELECT name FROM schema_migration ORDER BY name" if "schema_migration" in tables else ""
        applied = [name for (name,) in database.execute(names)]
        # From now on, each process that reads it holds a lock until it closes it: see `locked`.
        database.execute("PRAGMA journal_mode = WAL")
    if not applied:
        raise Refused("it is not a database of this service")
    if later := [name for name in applied if name not in known]:
        raise Refused(f"it is of a later release, which has the migration {later[0]}")


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Keep other processes from opening the database; raises Refused if one has it open."""
    with open(database, "rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCKED_BYTES, FIRST_LOCKED_BYTE)
        except (BlockingIOError, PermissionError):
            raise Refused(f"a process has {database} open, so stop the service first") from None
        yield


def fold(database: Path) -> None:
    """Write the log that a killed process left behind into the file. A damaged file stays as it is."""
    log = Path(f"{database}-wal")
    if not log.exists() or not log.stat().st_size:
        return
    with suppress(sqlite3.DatabaseError):
        with closing(connect(database, "ro", 0)) as reader:
            sound = reader.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
        if sound:
            with closing(connect(database, "rw", 0)) as writer:
                writer.execute("PRAGMA locking_mode = EXCLUSIVE")
                writer.execute("PRAGMA journal_mode = DELETE")


def remove_log(database: Path) -> None:
    """Remove what belongs to a file that is no longer there."""
    for end in ("-wal", "-shm"):
        Path(f"{database}{end}").unlink(missing_ok=True)


@contextmanager
def partial(database: Path) -> Iterator[Path]:
    """An empty file beside the database, with its mode. It is removed at the end, unless it was renamed."""
    if not database.parent.is_dir():
        raise Refused(f"the folder {database.parent} does not exist")
    file = database.with_name(f"{database.stem}-{os.getpid()}.part")
    file.write_bytes(b"")
    if database.exists():
        shutil.copymode(database, file)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        remove_log(file)


def unused_name(database: Path, kind: str) -> Path:
    """A name with the time (UTC) that no file has yet. It has no colon, so it works everywhere."""
    while True:
        time_now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = database.with_name(f"{database.stem}-{kind}{time_now}.db")
        if not name.exists():
            return name
        time.sleep(0.1)


def connect(file: Path, mode: str, patience: float) -> sqlite3.Connection:
    uri = f"file:{quote(os.path.abspath(file))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
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
        elif kept := restore(Path(file), database):
            print(f"{database} is restored. The file that it replaced is {kept}.")
        else:
            print(f"{database} is restored.")
    except (Refused, OSError, sqlite3.Error) as error:
        why = str(error)
        if isinstance(error, OSError):
            why = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        what = f"FILE={file}: nothing was restored" if restoring else "no backup was made"
        raise SystemExit(f"{what}: {why}.") from None


if __name__ == "__main__":
    main(sys.argv[1:])
