"""Back up the SQLite database while the service runs, and restore a backup while it is stopped.

`python -m kit.backup` writes a copy beside the database and prints its name. `python -m kit.backup restore
FILE` checks a copy and replaces the contents of the database by its contents.
"""

import os
import shutil
import sqlite3
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from peewee import SqliteDatabase
from playhouse.migrations import Runner

from kit.files import LEFT, Unusable, check_together, is_open, left_behind, opened, refuse_damage
from kit.settings import ROOT, load
from kit.sql import execute
from kit.storage import ERRORS, mend_schema

ORPHANS = 'SELECT count(*), "table", parent FROM pragma_foreign_key_check GROUP BY 2, 3'


def backup(database: Path) -> Path:
    """Write a copy of the database beside it, while others use it; returns its name once it is on disk."""
    if not database.is_file():
        raise Unusable(f"there is no file {database}")
    part = database.with_name(f"{database.stem}-{os.getpid()}.part")
    try:
        with opened(database, "ro") as source:
            source.execute("VACUUM INTO ?", (str(part),))
        shutil.copymode(database, part)
        sync(part)
        while True:
            name = unused_name(database, "")
            with suppress(FileExistsError):  # another backup was faster; a rename would replace it
                os.link(part, name)
                break
        sync(name.parent)
    finally:
        part.unlink(missing_ok=True)
    return name


def restore(file: Path, database: Path) -> Path | None:
    """Replace the database by a copy of a backup; returns the old one's new name, if there was one."""
    if not database.parent.is_dir():
        raise Unusable(f"the folder {database.parent} does not exist")
    if left := left_behind(os.path.realpath(file)):
        merge = f"merge it with: sqlite3 {file} 'PRAGMA wal_checkpoint(TRUNCATE)'"
        raise Unusable(f"{left[0]} lies beside it; if they belong together, {merge}; else move it away")
    copy = database.with_name(f"{database.stem}-{os.getpid()}-copy.part")
    try:
        with open(file, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        check_copy(copy)
        return replace(copy, database)
    finally:
        for end in ("", *LEFT, "-shm"):
            Path(f"{copy}{end}").unlink(missing_ok=True)


def replace(copy: Path, database: Path) -> Path | None:
    """Rename a copy to the database; returns the old one's new name, if there was one.

    A rename is one step: if this process dies, the database has its old contents or the new ones.
    """
    if is_open(str(database)):
        raise Unusable(f"a process has {database} open, so stop the service first")
    kept = None
    if database.exists():
        kept, owner = unused_name(database, "replaced-"), database.stat()
        os.chmod(copy, owner.st_mode)
        os.chown(copy, owner.st_uid, owner.st_gid)
        try:
            check_together(str(database))
            with opened(database, "rw") as old:  # merge the files beside it
                old.execute("PRAGMA journal_mode = DELETE")
                old.execute("BEGIN EXCLUSIVE").execute("COMMIT")
        except sqlite3.OperationalError:  # for example, a lock
            raise
        except (Unusable, sqlite3.DatabaseError):
            pass  # it is damaged, so keep those files too
        for name in (str(database), *left_behind(str(database))):
            os.link(name, name.replace(str(database), str(kept), 1))
    sync(copy)
    for end in (*LEFT, "-shm"):
        Path(f"{database}{end}").unlink(missing_ok=True)
    copy.rename(database)
    sync(database.parent)
    return kept


def check_copy(copy: Path) -> None:
    """Raise Unusable, or sqlite3.DatabaseError, unless it is undamaged and this release can use it."""
    refuse_damage(str(copy), "rw")
    database = SqliteDatabase(str(copy), pragmas={"journal_mode": "wal"})
    with database.connection_context():
        for count, table, parent in execute(database, ORPHANS):
            raise Unusable(f"the file is damaged: {count} rows of {table} point to no {parent}")
        runner = Runner(database, str(ROOT / "migrations"))
        if not runner.applied():
            raise Unusable("it is not a database of this service")
        if later := [migration.name for migration in runner.status() if migration.path is None]:
            raise Unusable(f"it is of a later release, which has the migration {later[0]}")
        mend_schema(database, runner)


def unused_name(database: Path, kind: str) -> Path:
    """A new name with the time (UTC), without a colon, which some file systems refuse."""
    while True:
        name = database.with_name(f"{database.stem}-{kind}{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db")
        if not name.exists():
            return name
        time.sleep(0.1)


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on disk."""
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def main(arguments: list[str]) -> None:
    """Back up the database or restore a file; raises SystemExit with a sentence if that fails."""
    url = load().database_url
    if not url.startswith("sqlite"):
        raise SystemExit("DATABASE_URL: is PostgreSQL. Use pg_dump and pg_restore, see docs/operations.md.")
    database = Path(unquote(url.removeprefix("sqlite:///")))
    real = database.resolve()  # the log lies beside it
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
