"""Back up the SQLite database while the service runs, and restore a backup while no process has it open.

`python -m kit.backup` writes a copy beside the database and prints its name. `python -m kit.backup restore
FILE` checks a copy and puts its contents in the place of the database's.
"""

import os
import shutil
import sqlite3
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from peewee import SqliteDatabase
from playhouse.migrations import Runner

from kit.files import LEFT, Unusable, check_together, damage, left_behind, opened, refuse_if_open
from kit.settings import ROOT, load
from kit.storage import ERRORS, mend_indexes

LOCK_TIMEOUT = 10  # seconds that a backup waits for a lock
ORPHANS = 'SELECT count(*), "table", parent FROM pragma_foreign_key_check GROUP BY 2, 3'


def backup(database: Path) -> Path:
    """Write a copy of the database beside it, while others use it; returns its name once it is on disk."""
    if not database.is_file():
        raise Unusable(f"there is no file {database}")
    with opened(database, "ro", LOCK_TIMEOUT) as source:
        return vacuum(source, database, unused_name(database, ""))


def vacuum(source: sqlite3.Connection, database: Path, name: Path) -> Path:
    """Write all that a connection sees to a new file of this name, beside the database; returns the name."""
    part = database.with_name(f"{database.stem}-{os.getpid()}.part")
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
    """Replace the contents of the database by those of a backup; returns where the old ones are kept."""
    if not database.parent.is_dir():
        raise Unusable(f"the folder {database.parent} does not exist")
    if database.exists() and file.samefile(database):
        raise Unusable("it is the database itself")
    if left := left_behind(os.path.realpath(file)):
        merge = f"merge it with: sqlite3 {file} 'PRAGMA wal_checkpoint(TRUNCATE)'"
        raise Unusable(f"{left[0]} lies beside it; if they belong together, {merge}; else move it away")
    copy = database.with_name(f"{database.stem}-{os.getpid()}-copy.part")
    try:
        with open(file, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        check_copy(copy)
        kept = replace(copy, database)
        sync(database.parent)
    finally:
        for end in ("", *LEFT, "-shm"):
            Path(f"{copy}{end}").unlink(missing_ok=True)
    return kept


def replace(copy: Path, database: Path) -> Path | None:
    """Put the contents of a copy into the database; returns where its old contents are kept.

    SQLite copies the pages in one transaction, and a rename is one step: if this dies, the database has the
    old contents or the new ones.
    """
    if database.exists():
        refuse_if_open(database)
    kept = unused_name(database, "replaced-") if database.exists() else None
    if kept and is_sound(database):
        with opened(database, "rw") as target, opened(copy, "ro") as source:
            target.execute("PRAGMA locking_mode = EXCLUSIVE")  # until it is closed
            target.execute("BEGIN EXCLUSIVE").execute("COMMIT")
            Path(f"{database}-shm").unlink(missing_ok=True)  # it needs none
            vacuum(target, database, kept)
            source.backup(target)
            target.execute("PRAGMA journal_mode = WAL")
        return kept
    if kept:  # byte by byte, with its log
        for name in (str(database), *left_behind(str(database))):
            shutil.copyfile(name, name.replace(str(database), str(kept), 1))
        sync(kept)
        owner = database.stat()
        os.chmod(copy, owner.st_mode)
        os.chown(copy, owner.st_uid, owner.st_gid)
    sync(copy)
    for end in (*LEFT, "-shm"):
        Path(f"{database}{end}").unlink(missing_ok=True)
    copy.rename(database)
    return kept


def is_sound(database: Path) -> bool:
    """True if the database is whole, together with what lies beside it."""
    try:
        check_together(str(database))
    except (Unusable, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.OperationalError):  # that says nothing about its contents
            raise
        return False
    return True


def check_copy(copy: Path) -> None:
    """Raise Unusable, or sqlite3.DatabaseError, unless it is whole and this release can use it."""
    with opened(copy, "rw") as source:
        if found := damage(source):
            raise Unusable(f"the file is damaged: {found}")
        for count, table, parent in source.execute(ORPHANS):
            raise Unusable(f"the file is damaged: {count} rows of {table} point to no {parent}")
        source.execute("PRAGMA journal_mode = WAL")
    database = SqliteDatabase(str(copy))
    with database.connection_context():
        runner = Runner(database, str(ROOT / "migrations"))
        if not runner.applied():
            raise Unusable("it is not a database of this service")
        if later := [migration.name for migration in runner.status() if migration.path is None]:
            raise Unusable(f"it is of a later release, which has the migration {later[0]}")
        mend_indexes(database, runner)


def unused_name(database: Path, kind: str) -> Path:
    """A name with the time (UTC) that no file has yet. It has no colon, so it works everywhere."""
    while True:
        name = database.with_name(f"{database.stem}-{kind}{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db")
        if not name.exists():
            return name
        time.sleep(0.1)


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
    real = database.resolve()  # beside it lies the log
    database = database if database.absolute() == real else real
    restoring, file = arguments[:1] == ["restore"], " ".join(arguments[1:])
    if arguments and not (restoring and file):
        raise SystemExit("FILE: name the backup, as in: make restore FILE=var/energy2go-20261125T082400Z.db")
    try:
        if not restoring:
            print(backup(database))
        else:
            kept = restore(Path(file), database)
            print(f"{database} is restored." + f" The file that it replaced is {kept}." * bool(kept))
    except (Unusable, OSError, sqlite3.Error, *ERRORS) as error:
        why = str(error)
        if isinstance(error, OSError):
            why = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        what = f"FILE={file}: nothing was restored" if restoring else "no backup was made"
        raise SystemExit(f"{what}: {why}.") from None


if __name__ == "__main__":
    main(sys.argv[1:])
