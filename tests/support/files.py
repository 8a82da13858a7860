"""A database file in a folder of its own, as another process sees it."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import models
from kit import storage
from programs import MIGRATIONS, ROOT

NAME = "energy2go.db"
# A process that dies after these statements.
KILLED = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    database.execute(statement)
os.kill(os.getpid(), 9)
"""


def made(file: Path, station: str) -> Path:
    """The file, now a database with this station, in WAL mode and closed."""
    database = storage.connect(f"sqlite:///{file}", 1)
    storage.prepare(database, MIGRATIONS)
    models.create_station(database, station)
    storage.drop(database)
    return file


def problem(url: str, migrations: str = MIGRATIONS) -> str:
    """Why a service cannot use this at its start; "" if it can."""
    store = storage.Store(url, 3, migrations)
    store.recover()
    store.close()
    return store.problem


def query(file: Path, sql: str) -> list[tuple]:
    """The rows of a statement that another process executes."""
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        return database.execute(sql).fetchall()


@contextlib.contextmanager
def locked(folder: Path):
    """Another process holds the write lock until the block ends."""
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def stored(folder: Path) -> set[str]:
    """The ids of the transactions that are stored."""
    return {str(UUID(key)) for (key,) in query(folder / NAME, 'SELECT id FROM "transaction"')}


def backup(folder: Path) -> Path:
    """A sound copy of the database as it is now."""
    query(folder / NAME, f"VACUUM INTO '{folder}/backup'")
    return folder / "backup"


def move_away(folder: Path, names: str = f"{NAME}*") -> Callable[[], None]:
    """Move files away; returns a function that moves them back."""
    away = folder.with_name("away")
    away.mkdir(exist_ok=True)
    for file in folder.glob(names):
        file.rename(away / file.name)

    def back() -> None:
        for file in away.iterdir():
            file.rename(folder / file.name)

    return back


def in_a_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a shell script with its own mounts; `$0` is Python, `$1` … are the arguments."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *user, "sh", "-c", script, sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def dies(file: Path, *statements: str) -> None:
    """Let a process die after these statements, which leaves a log or a journal."""
    subprocess.run([sys.executable, "-c", KILLED, str(file), *statements], check=False)


def damage(file: Path) -> None:
    """Overwrite every page of the file but the first."""
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (file.stat().st_size - 4096))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder. What other processes share in -shm does not count."""
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.endswith("-shm")]
    return {path.name: path.read_bytes() for path in found}
