"""A database file in a folder of its own, as another process sees it."""

import contextlib
import sqlite3
from pathlib import Path

NAME = "energy2go.db"


def query(file: Path, sql: str) -> list[tuple]:
    """The rows of a statement that another process executes."""
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as database, database:
        return database.execute(sql).fetchall()


def stored(folder: Path) -> set[str]:
    """The ids of the transactions that are stored, as 32 digits."""
    return {key for (key,) in query(folder / NAME, 'SELECT id FROM "transaction"')}


def digits(ids: list[str]) -> set[str]:
    """Ids as clients see them, written as SQLite stores them."""
    return {key.replace("-", "") for key in ids}


def backup(folder: Path) -> Path:
    """A sound copy of the database as it is now."""
    query(folder / NAME, f"VACUUM INTO '{folder}/backup'")
    return folder / "backup"


def remove(folder: Path) -> None:
    """Remove the file, its log and its index."""
    for file in folder.glob(f"{NAME}*"):
        file.unlink()
