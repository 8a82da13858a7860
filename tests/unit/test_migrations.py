"""Schema changes: of several processes one migrates, and a migration that does not end changes nothing."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from kit import storage
from kit.storage import execute
from programs import MIGRATIONS, ROOT

NAMES = sorted(path.stem for path in (ROOT / "migrations").glob("[0-9]*.py"))
MORE = "9999_more"  # the migration that a test adds to them
MIGRATE = """
import logging, sys, time
from kit.storage import Store
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
print("ready", flush=True)
sys.stdin.readline()
store = Store(sys.argv[1], 1, sys.argv[2])
while store.problem:
    store.recover()
    time.sleep(0.1)
store.close()
"""
ADD_COLUMN = """
from peewee import TextField

def up(migrator, db):
    migrator.migrate(migrator.add_column("station", "extra", TextField(default="Berlin")))
"""
HANG = ADD_COLUMN + "    print('half way', flush=True)\n    import time; time.sleep(60)\n"


@pytest.fixture
def database(database_url):
    """The database, opened in this process; it may not exist yet."""
    database = storage.connect(database_url, 2)
    yield database
    database.close_all()


@pytest.fixture
def start(tmp_path, database_url, programs):
    """A function that starts a process which migrates once it gets a line, with this one migration more."""

    def start(more: str) -> subprocess.Popen:
        folder = tmp_path / f"migrations-{len(programs)}"
        shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / f"{MORE}.py").write_text(more)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [sys.executable, "-B", "-c", MIGRATE, database_url, str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        programs.append(subprocess.Popen(command, text=True, env=environment, **pipes))
        assert programs[-1].stdout.readline() == "ready\n"
        return programs[-1]

    return start


def applied(database) -> list[str]:
    return [name for (name,) in execute(database, "SELECT name FROM schema_migration ORDER BY id")]


def columns(database) -> set[str]:
    return {column.name for column in database.get_columns("station")}


def test_of_processes_that_start_together_one_migrates(database, start):
    processes = [start(ADD_COLUMN) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert {process.returncode for process in processes} == {0}, said
    assert sum(one.count("up: ") for one in said) == len(NAMES) + 1
    assert applied(database) == [*NAMES, MORE]
    assert "extra" in columns(database)


def test_a_process_that_dies_while_it_migrates_leaves_it_to_the_next(database, start):
    storage.prepare(database, MIGRATIONS)
    before = columns(database)
    dying, following = start(HANG), start(ADD_COLUMN)
    dying.stdin.write("\n")
    dying.stdin.flush()
    assert (dying.stdout.readline(), dying.stdout.readline()) == (f"up: {MORE}\n", "half way\n")
    following.stdin.write("\n")
    following.stdin.flush()
    dying.kill()
    dying.communicate()
    said, _ = following.communicate(timeout=60)
    assert following.returncode == 0, said
    assert applied(database) == [*NAMES, MORE]
    assert columns(database) == before | {"extra"}


def test_a_schema_that_is_not_what_its_migrations_say_is_refused(database):
    storage.prepare(database, MIGRATIONS)
    for change in ("ADD COLUMN x int", "DROP COLUMN description", "RENAME TO other"):
        execute(database, f"ALTER TABLE station {change}")
        with pytest.raises(storage.Unusable, match=r"not that of this release.*station"):
            storage.prepare(database, MIGRATIONS)


def test_the_example_in_contributing_adds_a_column(database, start):
    page = (ROOT / "docs/CONTRIBUTING.md").read_text()
    example = re.search(r"^ *```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)[1]
    said, _ = start(textwrap.dedent(example)).communicate("\n", timeout=60)
    assert "city" in columns(database), said
