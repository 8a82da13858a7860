"""Backup and restore of a SQLite file: complete, all or nothing, and only while no process has it open."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

import models
from kit import backup as tool
from kit import storage
from kit.settings import Settings
from programs import MIGRATIONS, ROOT, wait_until

NAME = r"energy2go-\d{8}T\d{6}Z\.db"
# Opens the database, stores a station, says so, and is killed or ends with its input.
HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("INSERT INTO station (description) VALUES (?)", sys.argv[2:])
print("stored", flush=True)
sys.stdin.read()
"""
# Reads the database, and keeps it open until its input ends.
READ = HOLD.replace(
    "INSERT INTO station (description) VALUES (?)", "SELECT * FROM station WHERE description = ?"
)
# Opens the database, and locks it until its input ends.
LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
# Writes most pages of the database in a transaction that does not end.
SPILL = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode = DELETE")
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN")
database.execute("UPDATE station SET description = 'half written'")
database.executemany("INSERT INTO station (description) VALUES (?)", [["new" * 80]] * 1000)
print("written", flush=True)
sys.stdin.read()
"""
# Restores a file again and again in a child process, which dies at the first step, then at the second and
# so on: before it opens, renames, links or removes a file. Prints how each child ended, what it left, and
# what is there after a second restore.
DIE = """
import os, shutil, sqlite3, sys
from contextlib import closing
from itertools import count
from pathlib import Path
from kit.backup import restore
copy, file = map(Path, sys.argv[1:])
original, found = file.parent.with_name("original"), file.parent.with_name("found")
shutil.copytree(file.parent, original)

def child(step):
    steps = count(1)
    def hook(event, arguments):
        if event.startswith(("open", "os.", "sqlite3.connect")) and next(steps) == step:
            os._exit(9)
    if not (pid := os.fork()):
        sys.addaudithook(hook)
        restore(copy, file)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def contents():
    shutil.rmtree(found, ignore_errors=True)
    shutil.copytree(file.parent, found)
    if not (found / file.name).exists():
        return "none"
    with closing(sqlite3.connect(found / file.name)) as database:
        try:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return database.execute("SELECT description FROM station").fetchone()[0]
        except (AssertionError, sqlite3.DatabaseError):
            return "damaged"

for step in count(1):
    print(status := child(step), contents(), child(0), contents())
    if not status:
        break
    shutil.rmtree(file.parent)
    shutil.copytree(original, file.parent)
"""


@pytest.fixture
def file(tmp_path) -> Path:
    """A database with one station, closed."""
    (tmp_path / "var").mkdir()
    return made(tmp_path / "var/energy2go.db", "first")


def made(file: Path, station: str) -> Path:
    """The file, now a database with this station, in WAL mode and closed."""
    database = storage.connect(f"sqlite:///{file}", 1)
    storage.prepare(database, MIGRATIONS, models.TABLES)
    models.create_station(database, station)
    storage.drop(database)
    return file


@pytest.fixture
def holder():
    """A function that starts another process, which keeps the database open until its input ends."""
    started = []

    def start(file: Path, station: str, program: str = HOLD) -> subprocess.Popen:
        started.append(start_holder(program, file, station))
        return started[-1]

    yield start
    for process in started:
        kill(process)


def start_holder(program: str, file: Path, station: str) -> subprocess.Popen:
    command = [sys.executable, "-c", program, str(file), station]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait(20)


def stations(file: Path) -> list[str]:
    """The stations in a file, which must be a whole database."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [text for (text,) in database.execute("SELECT description FROM station ORDER BY id")]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder. What other processes share in -shm does not count."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


class Ended(NamedTuple):
    """How the command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that calls the command for this database: `run(file, "restore", "backup.db")`."""

    def call(file: Path, *arguments: str) -> Ended:
        monkeypatch.setattr(tool, "load", lambda: Settings(database_url=f"sqlite:///{file}"))
        try:
            tool.main(list(arguments))
        except SystemExit as refused:
            return Ended(1, capsys.readouterr().out, f"{refused}\n")
        return Ended(0, *capsys.readouterr())

    return call


# Backup


def test_a_backup_has_what_is_only_in_the_log_and_a_plain_copy_has_not(file, holder, tmp_path):
    holder(file, "second")
    shutil.copy(file, tmp_path / "copy.db")
    copy = tool.backup(file)
    assert re.fullmatch(NAME, copy.name)
    assert stations(copy) == ["first", "second"]
    assert stations(tmp_path / "copy.db") == ["first"]


def test_the_command_prints_the_name_of_the_backup_and_leaves_nothing_else(file, run):
    file.chmod(0o600)
    before = contents(file.parent)
    done = run(file)
    assert (done.returncode, done.stderr) == (0, "")
    name = done.stdout.rstrip("\n")
    assert Path(name).stat().st_mode == file.stat().st_mode
    assert contents(file.parent).keys() - before.keys() <= {Path(name).name, "energy2go.db-wal"}
    assert stations(Path(name)) == ["first"]
    assert file.read_bytes() == before["energy2go.db"]


def test_two_backups_in_one_second_have_two_names(file):
    assert len({tool.backup(file) for _ in range(2)}) == 2


def test_a_database_that_is_damaged_or_missing_gets_a_sentence_and_no_backup(file, tmp_path, run):
    damage(file)
    done = run(file)
    assert done.returncode == 1
    assert re.fullmatch(r"no backup was made: .*(malformed|damaged).*\.\n", done.stderr)
    assert not list(file.parent.glob("energy2go-*"))
    done = run(tmp_path / "other.db")
    assert done.stderr == f"no backup was made: there is no file {tmp_path}/other.db.\n"


def damage(file: Path) -> None:
    """Overwrite every page of the file but the first."""
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (file.stat().st_size - 4096))


# Restore


def test_a_restored_backup_takes_the_place_of_the_file_which_is_kept(file, run):
    copy = tool.backup(file)
    models.create_station(database := storage.connect(f"sqlite:///{file}", 1), "later")
    storage.drop(database)
    file.chmod(0o640)
    done = run(file, "restore", str(copy))
    kept = re.fullmatch(
        rf"{file} is restored. The file that it replaced is (.*-replaced-.*\.db)\.\n", done.stdout
    )
    assert stations(file) == stations(copy) == ["first"]
    assert stations(Path(kept[1])) == ["first", "later"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert not list(file.parent.glob("*.part"))


def test_a_backup_is_restored_where_there_is_no_database(file, tmp_path, run):
    Path(f"{tmp_path}/new.db-wal").write_bytes(b"of a file that was removed")
    done = run(tmp_path / "new.db", "restore", str(tool.backup(file)))
    assert done.stdout == f"{tmp_path}/new.db is restored.\n"
    assert not Path(f"{tmp_path}/new.db-wal").exists()
    assert stations(tmp_path / "new.db") == ["first"]


def test_while_a_process_has_the_database_open_nothing_is_changed(file, holder, run):
    copy = tool.backup(file)
    process = holder(file, "second")
    before = contents(file.parent)
    done = run(file, "restore", str(copy))
    assert (done.returncode, done.stdout) == (1, "")
    why = f"a process has {file} open, so stop the service first"
    assert done.stderr == f"FILE={copy}: nothing was restored: {why}.\n"
    assert contents(file.parent) == before
    end(process)
    assert run(file, "restore", str(copy)).returncode == 0


def test_a_process_that_only_reads_what_was_just_restored_is_noticed_too(file, holder, run):
    copy = tool.backup(file)
    tool.restore(copy, file)
    holder(file, "", READ)
    assert "stop the service first" in run(file, "restore", str(copy)).stderr


def test_the_owner_stays_the_same(file):
    owner = os.geteuid() or 10001  # root restores it for another user
    copy = tool.backup(file)
    os.chown(file, owner, -1)
    tool.restore(copy, file)
    assert file.stat().st_uid == owner


def test_what_a_killed_process_left_in_the_log_is_kept_and_not_mixed_in(file, holder):
    copy = tool.backup(file)
    kill(holder(file, "only in the log"))
    assert Path(f"{file}-wal").stat().st_size
    kept = tool.restore(copy, file)
    assert sorted(path.name for path in file.parent.glob("energy2go.db*")) == ["energy2go.db"]
    assert not Path(f"{kept}-wal").exists()
    assert stations(kept) == ["first", "only in the log"]
    assert stations(file) == ["first"]


def test_a_damaged_database_is_replaced_and_kept_with_its_log_as_it_was(file, holder):
    copy = tool.backup(file)
    kill(holder(file, "second"))
    damage(file)
    before = contents(file.parent)
    kept = tool.restore(copy, file)
    assert kept.read_bytes() == before["energy2go.db"]
    assert Path(f"{kept}-wal").read_bytes() == before["energy2go.db-wal"]
    assert not Path(f"{file}-wal").exists()
    assert stations(file) == ["first"]


def hot_journal(file: Path) -> None:
    """Let a process die in a transaction, after it has written pages: SQLite would roll it back."""
    kill(start_holder(SPILL, file, ""))
    assert Path(f"{file}-journal").stat().st_size


@pytest.mark.parametrize("end", ["-wal", "-journal"])
def test_a_copy_with_a_log_beside_it_is_refused_until_it_is_merged_or_moved(file, end, tmp_path, run):
    made(copy := tmp_path / "copy.db", "copied")
    if end == "-wal":
        kill(start_holder(HOLD, copy, "only in the log"))
        Path(f"{copy}-shm").unlink()
    else:
        hot_journal(copy)
    (link := tmp_path / "latest.db").symlink_to(copy)
    before, around = contents(file.parent), contents_of(copy)
    for name in (copy, link):
        refused = run(file, "restore", str(name))
        assert refused.returncode == 1
        assert f"nothing was restored: {copy}{end} lies beside it" in refused.stderr
        assert contents(file.parent) == before
        assert contents_of(copy) == around
    merge = re.search(r"merge it with: sqlite3 (\S+) '(.*?)'", refused.stderr)
    (tmp_path / "moved.db").write_bytes(around[copy.name])
    with closing(sqlite3.connect(merge[1], isolation_level=None)) as shell:
        shell.execute(merge[2])
    assert run(file, "restore", str(copy)).returncode == 0
    assert stations(file) == ["copied", *["only in the log"] * (end == "-wal")]
    if end == "-wal":  # moved away, what was in the log is missing
        assert run(file, "restore", str(tmp_path / "moved.db")).returncode == 0
        assert stations(file) == ["copied"]


def contents_of(file: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in file.parent.glob(f"{file.name}*")}


def later(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("INSERT INTO schema_migration (name, applied) VALUES ('9999_next', 0)")


def cut(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def confuse(file: Path) -> None:
    """The pages of an index belong to nothing. Only a check of the whole file notices that."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("DELETE FROM sqlite_schema WHERE name = 'transaction_updated_id'")


ROW = """INSERT INTO "transaction" (id, station_id, status, created, updated, idempotency_key, attempts)
    VALUES ('{}', {}, 'ERROR', 1, 1, 'key', 1)"""


def orphan(file: Path) -> None:
    """A transaction whose station does not exist."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(ROW.format(1, 9))


def twins(file: Path) -> None:
    """Two transactions with one key, as the index that forbids this is missing."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("DROP INDEX transaction_idempotency_key")
        for key in (1, 2):
            database.execute(ROW.format(key, 1))


def other(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE station (id)")


SPOILT = {
    "it is of a later release, which has the migration 9999_next": later,
    "(.*malformed|the file is damaged.*)": damage,
    "the file is damaged: .*": confuse,
    "(.*malformed|the file is damaged.*|file is not a database) ?": cut,
    "it is not a database of this service": other,
    "it is not a database of this service ?": lambda file: file.write_bytes(b""),
    "file is not a database": lambda file: file.write_bytes(b"energy2go " * 1000),
    "the file is damaged: 1 rows of transaction point to no station": orphan,
    'rows 1 and 2 of "transaction" have the same "idempotency_key": change one': twins,
    r"Is a directory: .*backup\.db": lambda file: (file.unlink(), file.mkdir()),
    r"No such file or directory: .*backup\.db": lambda file: file.unlink(),
}


@pytest.mark.parametrize("why", SPOILT)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(file, tmp_path, why, run):
    bad = tool.backup(file).rename(tmp_path / "backup.db")
    SPOILT[why](bad)
    before = contents(file.parent)
    done = run(file, "restore", str(bad))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"FILE={bad}: nothing was restored: {why}\.\n", done.stderr), done.stderr
    assert contents(file.parent) == before


@pytest.mark.parametrize("arguments", [["restore"], ["restore", ""], ["nonsense"]])
def test_a_missing_file_is_asked_for(file, arguments, run):
    done = run(file, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(r"FILE: name the backup, as in: make restore FILE=\S+\n", done.stderr)


def test_a_folder_that_does_not_exist_is_named(file, tmp_path, run):
    done = run(tmp_path / "typo/energy2go.db", "restore", str(tool.backup(file)))
    assert f"nothing was restored: the folder {tmp_path}/typo does not exist.\n" in done.stderr


def leave_a_log(file: Path) -> None:
    kill(start_holder(HOLD, file, "second"))


def damage_with_a_log(file: Path) -> None:
    leave_a_log(file)
    damage(file)


def remove_but_its_log(file: Path) -> None:
    leave_a_log(file)
    file.unlink()


BEFORE = {
    "a whole database": (lambda file: None, "first"),
    "one with a journal": (hot_journal, "first"),
    "a damaged one": (damage_with_a_log, "damaged"),
    "only a log": (remove_but_its_log, "none"),
}


@pytest.mark.parametrize("before", BEFORE)
def test_a_restore_that_dies_at_any_step_leaves_the_old_database_or_the_new_one(file, tmp_path, before):
    leave, old = BEFORE[before]
    leave(file)
    copy = made(tmp_path / "copy.db", "restored")
    command = [sys.executable, "-c", DIE, str(copy), str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    steps = ended.stdout.splitlines()
    assert steps[-1] == "0 restored 0 restored", ended.stderr
    assert len(steps) > 10
    assert {f"9 {old} 0 restored"} <= set(steps[:-1]) <= {f"9 {old} 0 restored", "9 restored 0 restored"}


def test_postgresql_is_left_to_its_own_programs():
    environment = {"DATABASE_URL": "postgresql://energy2go@127.0.0.1/energy2go"}
    command = [sys.executable, "-m", "kit.backup"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"DATABASE_URL: .*pg_dump and pg_restore.*\n", done.stderr)


def test_a_file_that_is_replaced_while_the_service_opens_it_is_noticed(file, tmp_path, holder):
    locker = holder(file, "", LOCK)
    store = storage.Store(f"sqlite:///{file}", 1, MIGRATIONS, models.TABLES)
    opening = threading.Thread(target=store.recover)
    opening.start()
    wait_until(lambda: is_open(file), "the service waits for the lock")
    made(tmp_path / "other.db", "other").rename(file)
    end(locker)
    opening.join(20)
    assert "was removed or replaced" in store.problem
    store.close()


def is_open(file: Path) -> bool:
    """True if this process has the file open."""
    found = Path("/proc/self/fd").iterdir()
    return any(path.exists() and path.samefile(file) for path in found)
