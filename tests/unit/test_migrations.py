"""Schema changes: of several processes one migrates, and a failed migration changes nothing."""

import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import peewee
import pytest
from playhouse.migrations import Runner

import models
from kit import storage
from kit.storage import execute
from programs import ROOT

PROCESSES = 3
NAMES = sorted(path.stem for path in (ROOT / "migrations").glob("[0-9]*.py"))
MORE = "9999_more"  # the migration that a test adds to them
MIGRATE = """
import sys
from test_migrations import migrate
print("ready", flush=True)
sys.stdin.readline()
migrate(*sys.argv[1:])
"""
ADD_COLUMN = """
from peewee import TextField

def up(migrator, db):
    migrator.migrate(migrator.add_column("station", "extra", TextField(default="Berlin")))
"""
BREAK = ADD_COLUMN + "    raise RuntimeError('this one is broken')\n"
HANG = ADD_COLUMN + "    print('half way', flush=True)\n    import time; time.sleep(60)\n"


def migrate(url: str, folder: str) -> None:
    """Bring the schema up to date, as a process does that starts."""
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    database = storage.connect(url, 1)
    try:
        while True:
            try:
                storage.prepare(database, folder, [])
                return
            except peewee.OperationalError as error:
                # Processes that open a new SQLite file together may hear that it is locked. The ledger tries
                # again too.
                if "locked" not in str(error):
                    raise
                storage.drop(database)
                time.sleep(0.1)
    finally:
        database.close_all()


@pytest.fixture
def database(database_url):
    """The database, opened in this process; it may not exist yet."""
    database = storage.connect(database_url, 2)
    yield database
    database.close_all()


def prepare(database) -> None:
    storage.prepare(database, str(ROOT / "migrations"), models.TABLES)


@pytest.fixture
def with_more(tmp_path):
    """A function that returns a folder with our migrations and this one."""

    def make(more: str = "") -> str:
        folder, ignore = tmp_path / "migrations", shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "migrations", folder, dirs_exist_ok=True, ignore=ignore)
        if more:
            (folder / f"{MORE}.py").write_text(more)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # a file may change within a second
        return str(folder)

    return make


@pytest.fixture
def release(database_url, programs):
    """A function that starts a process with these migrations; it migrates when it is told to."""

    def start(folder: str) -> Process:
        programs.append(Process(database_url, folder))
        return programs[-1]

    return start


class Process:
    """A process that migrates when it is told to; `end` returns its exit status and its output."""

    def __init__(self, url: str, folder: str):
        command = [sys.executable, "-B", "-c", MIGRATE, url, folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        path = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support:{Path(__file__).parent}"}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, env=os.environ | path, **pipes)
        self.says("ready\n")

    def says(self, line: str) -> None:
        assert self.process.stdout.readline() == line

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


def applied(database) -> list[str]:
    return [name for (name,) in execute(database, "SELECT name FROM schema_migration ORDER BY id")]


def columns(database, table: str) -> set[str]:
    return {column.name for column in database.get_columns(table)}


def test_of_processes_that_start_together_one_migrates(database, release, with_more):
    processes = [release(with_more(ADD_COLUMN)) for _ in range(PROCESSES)]
    for process in processes:
        process.go()
    ended = [process.end() for process in processes]
    assert {status for status, _ in ended} == {0}, ended
    assert sum(said.count("up: ") for _, said in ended) == len(NAMES) + 1
    assert applied(database) == [*NAMES, MORE]
    assert "extra" in columns(database, "station")


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


def test_a_schema_of_a_later_release_is_refused(database, database_url, with_more):
    migrate(database_url, with_more(ADD_COLUMN))
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


def test_the_example_in_contributing_adds_a_column(database, database_url, with_more):
    page = (ROOT / "docs/CONTRIBUTING.md").read_text()
    example = textwrap.dedent(re.search(r"^ *```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)[1])
    migrate(database_url, with_more(example))
    assert "city" in columns(database, "station")


def test_a_migration_that_fails_changes_nothing(database, database_url, with_more):
    prepare(database)
    before = columns(database, "station")
    with pytest.raises(RuntimeError, match="this one is broken"):
        migrate(database_url, with_more(BREAK))
    assert applied(database) == NAMES
    assert columns(database, "station") == before
    migrate(database_url, with_more(ADD_COLUMN))
    assert columns(database, "station") == before | {"extra"}


def test_a_process_that_dies_while_it_migrates_leaves_it_to_the_next(database, release, with_more):
    prepare(database)
    before = columns(database, "station")
    dying = release(with_more(HANG))
    dying.go()
    dying.says(f"up: {MORE}\n")
    dying.says("half way\n")
    following = release(with_more(ADD_COLUMN))
    following.go()
    dying.kill()
    assert following.end()[0] == 0
    assert applied(database) == [*NAMES, MORE]
    assert columns(database, "station") == before | {"extra"}
