"""Backup and restore of a SQLite file: complete, all or nothing, and only while no process has it open."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from files import contents, damage, dies, made, query
from kit import backup as tool
from kit.settings import Settings
from programs import ROOT
from trial import FULL

STORE = "INSERT INTO station (description) VALUES ('{}')".format
MANY = f"""INSERT INTO station (description) WITH RECURSIVE many(n) AS
    (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 1000) SELECT '{"new" * 80}' FROM many"""
# Writes most pages of the database in a transaction that does not end.
SPILL = "PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 2", "BEGIN", MANY
# Restores a file, and dies at this step in its folder.
DIE = """
import os, sys
from itertools import count
from pathlib import Path
from kit.backup import restore
copy, file, steps = Path(sys.argv[1]), Path(sys.argv[2]), count(1)
def hook(event, arguments):
    here = arguments and str(file.parent) in str(arguments[0])
    if here and event.startswith(("open", "os.", "sqlite3.connect")) and next(steps) == int(sys.argv[3]):
        os._exit(9)
sys.addaudithook(hook)
restore(copy, file)
"""


@pytest.fixture
def file(tmp_path) -> Path:
    """A database with one station, closed."""
    (tmp_path / "var").mkdir()
    return made(tmp_path / "var/energy2go.db", "first")


def stations(file: Path) -> list[str]:
    """The stations in a file, which must be a whole database."""
    assert query(file, "PRAGMA integrity_check") == [("ok",)]
    return [text for (text,) in query(file, "SELECT description FROM station ORDER BY id")]


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that calls the command for this database, and returns what it prints or why it ends."""

    def call(file: Path, *arguments: object) -> str:
        monkeypatch.setattr(tool, "load", lambda: Settings(database_url=f"sqlite:///{file}"))
        try:
            tool.main([str(one) for one in arguments])
        except SystemExit as refused:
            return f"refused: {refused}"
        return capsys.readouterr().out.removesuffix("\n")

    return call


def test_a_backup_has_what_is_only_in_the_log_and_leaves_nothing_else(file, run):
    file.chmod(0o600)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute(STORE("second"))
        before = contents(file.parent)
        copy = Path(run(file))
        assert re.fullmatch(r"energy2go-\d{8}T\d{6}Z\.db", copy.name)
        assert {copy.name: copy.read_bytes()} | before == contents(file.parent)
        assert copy != tool.backup(file)  # even within a second
    assert stations(copy) == ["first", "second"]
    assert copy.stat().st_mode == file.stat().st_mode


def test_backups_at_the_same_time_have_names_of_their_own(file):
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{file}"}
    options = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen([sys.executable, "-m", "kit.backup"], **options) for _ in range(4)]
    names = {process.communicate()[0].strip() for process in started}
    assert len([name for name in names if stations(name)]) == 4


def test_a_restored_backup_takes_the_place_of_the_file_which_is_kept(file, run, tmp_path):
    copy = tool.backup(file)
    query(file, STORE("later"))
    file.chmod(0o640)
    owner = os.geteuid() or 10001  # root restores it for another user
    os.chown(file, owner, -1)
    said = rf"{file} is restored\. The file that it replaced is (.*-replaced-.*\.db)\."
    kept = re.fullmatch(said, run(file, "restore", copy))
    assert stations(file) == stations(copy) == ["first"]
    assert stations(Path(kept[1])) == ["first", "later"]
    assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o640, owner)
    assert not list(file.parent.glob("*.part"))
    new, left = tmp_path / "new.db", tmp_path / "new.db-wal"
    left.write_bytes(b"of a file that was removed")
    assert run(new, "restore", copy) == f"{new} is restored."
    assert (stations(new), left.exists()) == (["first"], False)


def test_a_damaged_database_is_not_backed_up_and_is_kept_with_its_log_as_it_was(file, run):
    copy = tool.backup(file)
    dies(file, STORE("second"))
    damage(file)
    before = contents(file.parent)
    assert re.fullmatch(r"refused: no backup was made: .*(malformed|damaged).*\.", run(file))
    assert contents(file.parent) == before
    kept = tool.restore(copy, file)
    assert kept.read_bytes() == before["energy2go.db"]
    assert Path(f"{kept}-wal").read_bytes() == before["energy2go.db-wal"]
    assert not Path(f"{file}-wal").exists()
    assert stations(file) == ["first"]


def test_a_copy_with_a_log_beside_it_is_refused_until_it_is_merged_or_moved(file, tmp_path, run):
    dies(made(copy := tmp_path / "copy.db", "copied"), STORE("only in the log"))
    Path(f"{copy}-shm").unlink()
    (link := tmp_path / "latest.db").symlink_to(copy)
    before, around = contents(file.parent), contents(tmp_path)
    for name in (copy, link):
        refused = run(file, "restore", name)
        assert f"nothing was restored: {copy}-wal lies beside it" in refused
        assert (contents(file.parent), contents(tmp_path)) == (before, around)
    merge = re.search(r"merge it with: sqlite3 (\S+) '(.*?)'", refused)
    query(merge[1], merge[2])
    run(file, "restore", copy)
    assert stations(file) == ["copied", "only in the log"]


ROW = """INSERT INTO "transaction" (id, station_id, status, created, updated, idempotency_key, attempts)
    VALUES ('{}', {}, 'ERROR', 1, 1, 'key', 1);"""
# The pages of an index belong to nothing. Only a check of the whole file notices that.
CONFUSE = """PRAGMA writable_schema = ON;
    DELETE FROM sqlite_schema WHERE name = 'transaction_updated_id'"""
DROP = "DROP TABLE retention; DROP TABLE schema_migration; DROP TABLE 'transaction'; DROP TABLE station"
SPOILT = {  # by SQL, or by a function
    "it is of a later release, which has the migration 9999_next": (
        "INSERT INTO schema_migration (name, applied) VALUES ('9999_next', 0)"
    ),
    "the file is damaged: .*": CONFUSE,
    "it is not a database of this service": DROP,
    "file is not a database": lambda file: file.write_bytes(b"energy2go " * 1000),
    "the file is damaged: 1 rows of transaction point to no station": ROW.format(1, 9),
    'rows 1 and 2 of "transaction" have the same "idempotency_key": change one': (
        "DROP INDEX transaction_idempotency_key;" + ROW.format(1, 1) + ROW.format(2, 1)
    ),
    r"No such file or directory: .*backup\.db": lambda file: file.unlink(),
}


@pytest.mark.parametrize("why", SPOILT)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(file, tmp_path, why, run):
    bad, harm = tool.backup(file).rename(tmp_path / "backup.db"), SPOILT[why]
    if isinstance(harm, str):
        with closing(sqlite3.connect(bad)) as database:
            database.executescript(harm)
    else:
        harm(bad)
    before = contents(file.parent)
    refused = run(file, "restore", bad)
    assert re.fullmatch(rf"refused: FILE={bad}: nothing was restored: {why}\.", refused), refused
    assert contents(file.parent) == before


def test_what_is_missing_is_named(file, tmp_path, run, monkeypatch):
    typo = tmp_path / "typo/energy2go.db"
    assert run(typo) == f"refused: no backup was made: there is no file {typo}."
    for arguments in (["restore"], ["restore", ""], ["nonsense"]):
        assert run(file, *arguments).startswith("refused: FILE: name the backup, as in: make restore FILE=")
    missing = f"nothing was restored: the folder {typo.parent} does not exist."
    assert run(typo, "restore", tool.backup(file)).endswith(missing)
    monkeypatch.setattr(tool, "load", lambda: Settings(database_url="postgresql://127.0.0.1/energy2go"))
    with pytest.raises(SystemExit, match=r"^DATABASE_URL: .*pg_dump and pg_restore"):
        tool.main([])


BEFORE = {
    "a whole database": (lambda file: None, "first"),
    "only a log": (lambda file: (dies(file, STORE("second")), file.unlink()), "none"),
    "one with a journal": (lambda file: dies(file, *SPILL), "first"),
    "a damaged one": (lambda file: (dies(file, STORE("second")), damage(file)), "damaged"),
}
EACH = [*BEFORE][:2] + [pytest.param(name, marks=pytest.mark.fault) for name in [*BEFORE][2:]]


def found(file: Path) -> str:
    """The first station, looked up in a copy, as opening a database changes the files beside it."""
    shutil.rmtree(other := file.parent.with_name("found"), ignore_errors=True)
    copy = shutil.copytree(file.parent, other) / file.name
    try:
        return stations(copy)[0] if copy.exists() else "none"
    except (AssertionError, sqlite3.DatabaseError):
        return "damaged"


@pytest.mark.parametrize("before", EACH)
def test_a_restore_that_dies_at_any_step_leaves_the_old_database_or_the_new_one(file, tmp_path, before):
    leave, old = BEFORE[before]
    leave(file)
    original = shutil.copytree(file.parent, tmp_path / "original")
    copy, left, ended = made(tmp_path / "copy.db", "restored"), [], 9
    for step in count(1, 1 if FULL else 5):
        ended = subprocess.run([sys.executable, "-c", DIE, copy, file, str(step)], cwd=ROOT).returncode
        left.append(found(file))
        tool.restore(copy, file)
        assert found(file) == "restored"
        if ended != 9:
            break
        shutil.rmtree(file.parent)
        shutil.copytree(original, file.parent)
    assert (ended, left[-1], len(left) > 3) == (0, "restored", True)
    assert {old} <= {*left} <= {old, "restored"}
