"""A SQLite database's files: who uses them, and whether they are damaged."""

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

LEFT = ("-wal", "-journal")  # SQLite reads these when it opens the file
NONE = (0, 0)  # the identity of a missing file
DAMAGED = "the file is damaged: {} (as when a backup is copied over a file but its -wal is left)"


class Unusable(Exception):
    """We must not use the database until someone has looked at it."""


def identity(name: str) -> tuple[int, int]:
    """A file's device and inode; NONE if it is missing."""
    try:
        status = os.stat(name)
    except OSError:
        return NONE
    return status.st_dev, status.st_ino


def create(file: str) -> None:
    """Create the file if it is missing; raises OSError if it can't be used."""
    if not os.path.isdir(folder := os.path.dirname(file) or "."):
        raise FileNotFoundError(f"the folder {folder} does not exist")
    with suppress(FileExistsError):
        # Never open a file that exists: closing it would end all locks that this process holds on it.
        open(file, "xb").close()
    if not os.path.isfile(file) or not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(f"{file} is not a file that can be read and written")


def left_behind(file: str) -> list[str]:
    """The files beside this one that SQLite would read. (It makes a -shm anew.)"""
    return [file + end for end in LEFT if os.path.exists(file + end) and os.path.getsize(file + end)]


def is_open(file: str) -> bool:
    """True if another process has the file open in WAL mode, even a damaged one. This one must not."""
    with suppress(FileNotFoundError), open(file, "r+b") as opened_file:
        try:
            fcntl.lockf(opened_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)  # SQLite's bytes for it
        except OSError:
            return True
    return False


def check_together(file: str) -> None:
    """Raise Unusable if a file is damaged, by itself or by the files beside it; changes no file."""
    left = left_behind(file)
    if not os.path.exists(file):
        raise FileNotFoundError(f"{file} is missing, but {left[0]} is there: put it back, or move both away")
    if f"{file}-journal" not in left:
        refuse_damage(file, "ro")  # closing it doesn't write the log into the file
        return
    # SQLite writes the journal into the file when it opens it, so check a copy.
    with TemporaryDirectory(".part", f"{os.path.basename(file)}-", os.path.dirname(file)) as folder:
        copies = [shutil.copy(name, folder) for name in (file, *left)]
        refuse_damage(copies[0], "rw")


def refuse_damage(file: str, mode: str) -> None:
    """Raise Unusable if tables, or tables and their indexes, are damaged. Takes about 10 s per GB."""
    with opened(file, mode) as database:
        ((found,),) = database.execute("PRAGMA integrity_check(1)").fetchall()
    if found != "ok":
        raise Unusable(DAMAGED.format(" ".join(found.split())))


@contextmanager
def opened(file: str | os.PathLike[str], mode: str) -> Iterator[sqlite3.Connection]:
    """A connection without implicit transactions, which waits 10 s for a lock."""
    uri = f"file:{quote(os.path.abspath(file))}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None)) as connection:
        yield connection


def is_full(file: str) -> bool:
    """True if the disk has no room for the files that SQLite creates. (SQLite only reports an I/O error.)"""
    with suppress(OSError):
        return shutil.disk_usage(os.path.dirname(file)).free < 2**16
    return False


def warn_of_mount(file: str) -> None:
    """Warn if the file itself is a mount point: its log then lies in another folder."""
    escaped = re.sub(r"[\s\\]", lambda found: f"\\{ord(found[0]):03o}", file)  # as the kernel does
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        if any(line.split()[4] == escaped for line in mounts):
            text = "%s is a mount point, so its -wal is lost with this container: mount its folder"
            log.warning(text, file, extra={"event": "file_is_mounted"})
