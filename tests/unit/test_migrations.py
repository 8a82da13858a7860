"""Schema changes: of several processes one migrates, and a failed migration changes nothing."""

import contextlib
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from playhouse.migrations import Runner

import models
from kit import storage
from kit.storage import execute
from programs import ROOT

PROCESSES = 6
NAMES = sorted(path.stem for path in (ROOT / "migrations").glob("[0-9]*.py"))
MORE = "9999_more"  # the migration that a test adds to them
# Processes that open a new SQLite file together may hear that it is locked. The ledger tries again too.
MIGRATE = """
import logging, sys, time, peewee
from kit import storage
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
database = storage.connect(sys.argv[1], 1)
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        storage.prepare(database, sys.argv[2], [])
        break
    except peewee.OperationalError as error:
        if "locked" not in str(error):
            raise
        storage.drop(database)
        time.sleep(0.1)
"""
ADD_COLUMN = """
from peewee import TextField

def up(migrator, db):
    migrator.migrate(migrator.add_column("station", "extra", TextField(default="Berlin")))
"""
BREAK = ADD_COLUMN + "    raise RuntimeError('this one is broken')\n"
HANG = ADD_COLUMN + "    print('half way', flush=True)\n    import time; time.sleep(60)\n"


@pytest.fixture
def database(database_url):
    """The database, opened in this process; it may not exist yet."""
    database = storage.connect(database_url, 2)
    yield database
    database.close_all()


def prepare(database) -> None:
    storage.prepare(database, str(ROOT / "migrations"), models.TABLES)


@pytest.fixture
def release(tmp_path, database_url, programs):
    """A function that starts a process with one more migration; it migrates when it is told to."""

    def start(more: str = "") -> Process:
        folder = tmp_path / "migrations"
        shutil.copytree(
            ROOT / "migrations", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        if more:
            (folder / f"{MORE}.py").write_text(more)
        programs.append(Process(database_url, folder))
        return programs[-1]

    return start


class Process:
    """A process that migrates when it is told to; `end` returns its exit status and its output."""

    def __init__(self, url: str, folder: Path):
        command = [sys.executable, "-B", "-c", MIGRATE, url, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        self.says("ready\n")

    def says(self, line: str) -> None:
        assert self.process.stdout.readline() == line

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=30)
        return self.process.returncode, said

    def run(self) -> tuple[int, str]:
        self.go()
        return self.end()

    def kill(self) -> None:
        self.process.kill()
        with contextlib.suppress(ValueError):  # its output was already read
            self.process.communicate()


def applied(database) -> list[str]:
    return [name for (name,) in execute(database, "SELECT name FROM schema_migration ORDER BY id")]


def columns(database, table: str) -> set[str]:
    return {column.name for column in database.get_columns(table)}


def test_of_processes_that_start_together_one_migrates(database, release):
    processes = [release() for _ in range(PROCESSES)]
    for process in processes:
        process.go()
    ended = [process.end() for process in processes]
    assert {status for status, _ in ended} == {0}, ended
    assert sum(said.count(f"up: {name}") for _, said in ended for name in NAMES) == len(NAMES)
    assert applied(database) == NAMES


def test_a_later_migration_is_applied_once_and_rows_stay(database, release):
    prepare(database)
    before = columns(database, "station")
    models.create_station(database, "Teste")
    processes = [release(ADD_COLUMN) for _ in range(3)]
    for process in processes:
        process.go()
    ended = [process.end() for process in processes]
    assert {status for status, _ in ended} == {0}, ended
    assert applied(database) == [*NAMES, MORE]
    assert columns(database, "station") == before | {"extra"}
    assert models.get_station(database, 1).description == "Teste"


def test_a_release_can_be_taken_back_and_its_rows_stay(database):
    typed = "CAFE\u0301 \u0130stanbul"
    prepare(database)
    execute(database, "INSERT INTO station (description) VALUES (?)", typed)
    with database.atomic():
        Runner(database, str(ROOT / "migrations")).down(NAMES[2])
    assert applied(database) == NAMES[:2]
    assert columns(database, "station") == {"id", "description"}
    assert not columns(database, "transaction") & {"reason", "equipment"}
    assert "retention" not in database.get_tables()
    prepare(database)
    assert execute(database, "SELECT * FROM station") == [(1, typed, "caf\xe9 istanbul")]
    assert models.deleted_until(database) == models.FIRST


def test_a_schema_of_a_later_release_is_refused(database, release):
    assert release(ADD_COLUMN).run()[0] == 0
    with pytest.raises(storage.Unusable, match=f"later release.*{MORE}"):
        prepare(database)


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE station",
        "ALTER TABLE station DROP COLUMN description",
        "ALTER TABLE station ADD COLUMN x int",
    ],
)
def test_a_schema_that_is_not_what_its_migrations_say_is_refused(database, change):
    prepare(database)
    execute(database, 'DROP TABLE IF EXISTS "transaction"' if "DROP TABLE" in change else "SELECT 1")
    execute(database, change)
    with pytest.raises(storage.Unusable, match=r"not that of this release.*station"):
        prepare(database)


def test_the_example_in_contributing_adds_a_column(database, release):
    page = (ROOT / "docs/CONTRIBUTING.md").read_text()
    example = textwrap.dedent(re.search(r"^ *```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)[1])
    assert release(example).run()[0] == 0
    assert "city" in columns(database, "station")


def test_a_migration_that_fails_changes_nothing(database, release):
    prepare(database)
    before = columns(database, "station")
    status, said = release(BREAK).run()
    assert status
    assert "this one is broken" in said
    assert applied(database) == NAMES
    assert columns(database, "station") == before
    assert release(ADD_COLUMN).run()[0] == 0
    assert columns(database, "station") == before | {"extra"}


def test_a_process_that_dies_while_it_migrates_leaves_it_to_the_next(database, release):
    prepare(database)
    before = columns(database, "station")
    dying = release(HANG)
    dying.go()
    dying.says(f"up: {MORE}\n")
    dying.says("half way\n")
    following = release(ADD_COLUMN)
    following.go()
    dying.kill()
    assert following.end()[0] == 0
    assert applied(database) == [*NAMES, MORE]
    assert columns(database, "station") == before | {"extra"}
