"""Schema changes: one that fails changes nothing, and a schema that is not ours is refused."""

import re
import shutil
import textwrap
from pathlib import Path

import pytest

from kit import storage
from kit.storage import execute
from programs import MIGRATIONS, ROOT

ADD_COLUMN = """
from peewee import TextField

def up(migrator, db):
    migrator.migrate(migrator.add_column("station", "extra", TextField(default="Berlin")))
"""


@pytest.fixture
def database(database_url):
    """The database, with our schema."""
    database = storage.connect(database_url, 2)
    storage.prepare(database, MIGRATIONS)
    yield database
    database.close_all()


def more(tmp_path: Path, migration: str) -> str:
    """A folder with our migrations and this one."""
    folder = Path(
        shutil.copytree(MIGRATIONS, tmp_path / str(len(migration)), ignore=lambda *_: ["__pycache__"])
    )
    (folder / "9999_more.py").write_text(migration)
    return str(folder)


def columns(database) -> set[str]:
    return {column.name for column in database.get_columns("station")}


def test_a_migration_that_fails_changes_nothing(database, tmp_path):
    before = columns(database)
    applied = execute(database, "SELECT name FROM schema_migration")
    with pytest.raises(RuntimeError, match="this one is broken"):
        storage.prepare(
            database, more(tmp_path, ADD_COLUMN + "    raise RuntimeError('this one is broken')\n")
        )
    assert execute(database, "SELECT name FROM schema_migration") == applied
    assert columns(database) == before
    storage.prepare(database, more(tmp_path, ADD_COLUMN))
    assert columns(database) == before | {"extra"}


def test_a_schema_that_is_not_what_its_migrations_say_is_refused(database):
    for change in ("ADD COLUMN x int", "DROP COLUMN description", "RENAME TO other"):
        execute(database, f"ALTER TABLE station {change}")
        with pytest.raises(storage.Unusable, match=r"not that of this release.*station"):
            storage.prepare(database, MIGRATIONS)


def test_the_example_in_contributing_adds_a_column(database, tmp_path):
    page = (ROOT / "docs/CONTRIBUTING.md").read_text()
    example = re.search(r"^ *```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)[1]
    storage.prepare(database, more(tmp_path, textwrap.dedent(example)))
    assert "city" in columns(database)
