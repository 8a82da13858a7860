"""The files of a SQLite database: which there are, and whether they are sound together."""

import fcntl
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from tempfile import TemporaryDirectory
from urllib.parse import quote

log = logging.getLogger(__name__)

LEFT = ("-wal", "-journal")  # what SQLite writes beside a file, and reads when it opens the file again
NONE = (0, 0)  # the identity of a file that does not exist
DAMAGED = "the file is damaged, as when a backup is copied over a file but its -wal is left"


class Unusable(Exception):
    """The database must not be used until someone has looked at it."""


def identity(name: str) -> tuple[int, int]:
    """Device and inode of a file; NONE if there is none."""
    try:
        status = os.stat(name)
    except OSError:
        return NONE
    return status.st_dev, status.st_ino


def create(file: str) -> None:
    """Create the file if there is none; raises OSError if it cannot be used."""
    if not os.path.isdir(folder := os.path.dirname(file) or "."):
        raise FileNotFoundError(f"the folder {folder} does not exist")
    with suppress(FileExistsError):
        # Never open a file that exists: closing it would end all locks that this process holds on it.
        open(file, "xb").close()
    if not os.path.isfile(file) or not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(f"{file} is not a file that can be read and written")


def left_behind(file: str) -> list[str]:
    """What lies beside a file and SQLite would read. (It makes a -shm anew.)"""
    return [file + end for end in LEFT if os.path.exists(file + end) and os.path.getsize(file + end)]


def is_open(file: str) -> bool:
    """True if a process has the database open: it holds a lock on the file (proc(5))."""
    with suppress(OSError), open("/proc/locks", encoding="ascii") as locks:
        inode = f":{os.stat(file).st_ino}"
        return any(line.split()[-3].endswith(inode) for line in locks)
    return False


def refuse_if_open(file: str | os.PathLike[str]) -> None:
    """Raise Unusable if another process has the file open in WAL mode, even a damaged one."""
    with open(file, "r+b") as opened_file:
        try:
            fcntl.lockf(opened_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)  # SQLite's bytes for it
        except OSError:
            raise Unusable(f"a process has {file} open, so stop the service first") from None


def check_together(file: str) -> None:
    """Raise Unusable if a file is damaged by what was left beside it; this changes neither."""
    left = left_behind(file)
    if not os.path.exists(file):
        raise FileNotFoundError(f"{file} is missing, but {left[0]} is there: put it back, or move both away")
    if f"{file}-journal" not in left:
        return refuse_damage(file, "ro")  # closing it does not write the log into the file
    # Opening it writes the journal into the file, so try that with a copy.
    with TemporaryDirectory(".part", f"{os.path.basename(file)}-", os.path.dirname(file)) as folder:
        copies = [shutil.copy(name, folder) for name in (file, *left)]
        return refuse_damage(copies[0], "rw")


def refuse_damage(file: str, mode: str) -> None:
    with opened(file, mode) as database:
        if found := damage(database):
            raise Unusable(f"{DAMAGED} ({found})")


def damage(database: sqlite3.Connection) -> str:
    """What is wrong in a database, or between its tables and their indexes. Takes about 10 s per GB."""
    ((found,),) = database.execute("PRAGMA integrity_check(1)").fetchall()
    return "" if found == "ok" else " ".join(found.split())


@contextmanager
def opened(file: str | os.PathLike[str], mode: str, patience: float = 0) -> Iterator[sqlite3.Connection]:
    """A connection without implicit transactions, which waits so many seconds for a lock."""
    uri = f"file:{quote(os.path.abspath(file))}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None)) as connection:
        yield connection


def is_full(file: str) -> bool:
    """True if its disk has no room for what SQLite makes when it opens a file. (An I/O error to it.)"""
    with suppress(OSError):
        disk = os.statvfs(os.path.dirname(file))
        return disk.f_bavail * disk.f_frsize < 2**16
    return False


def warn_of_other_names(file: str) -> None:
    """Warn if the file has another name, beside which its log is not found."""
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        points = [
            re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in mounts
        ]
        why = "is a mount point, so its -wal is lost with this container: mount its folder" * (
            file in points
        )
        why = why or "has hard links: never open it by another name" * (os.stat(file).st_nlink > 1)
        if why:
            log.warning("%s %s", file, why, extra={"event": "other_names"})
