"""What lies beside a SQLite database at the start: used if it belongs to it, else left as it is."""

import re
import shutil
from pathlib import Path

import pytest

from files import NAME, backup, contents, dies, made, problem, query
from programs import MIGRATIONS

MORE = """INSERT INTO "transaction" (id, station_id, status, created, updated, attempts)
    WITH RECURSIVE n(i) AS (SELECT {0} UNION ALL SELECT i + 1 FROM n WHERE i < {0} + 999)
    SELECT printf('%032x', i * 7919 % 100003), 1, 'ERROR', i, i, 1 FROM n""".format
SMALL = "PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 2"  # writes pages before its transaction ends


@pytest.fixture
def file(tmp_path) -> Path:
    """A database with 1,000 transactions, closed."""
    (tmp_path / "var").mkdir()
    file = made(tmp_path / "var" / NAME, "Teste")
    query(file, MORE(1))
    return file


def stays_refused(file: Path, words: str) -> None:
    """Check that each start refuses the file with these words, and changes nothing in its folder."""
    before = contents(file.parent)
    for _ in range(2):
        assert re.search(words, problem(f"sqlite:///{file}"))
        assert contents(file.parent) == before


def count(file: Path) -> int:
    assert query(file, "PRAGMA integrity_check") == [("ok",)]
    return query(file, 'SELECT count(*) FROM "transaction"')[0][0]


def test_a_log_is_used_if_it_belongs_and_refused_if_not(file):
    dies(file, MORE(2000))
    assert (problem(f"sqlite:///{file}"), count(file)) == ("", 2000)
    copy = backup(file.parent)
    query(copy, 'DELETE FROM "transaction" WHERE random() % 2')
    query(copy, "VACUUM")
    dies(file, MORE(4000))
    shutil.copyfile(copy, file)
    stays_refused(file, "^the file is damaged.*-wal")
    Path(f"{file}-wal").unlink()
    assert (problem(f"sqlite:///{file}"), count(file)) == ("", count(copy))


def test_a_journal_is_used_if_it_belongs_and_refused_if_not(file):
    journal = Path(f"{file}-journal")
    dies(file, *SMALL, "BEGIN", 'UPDATE "transaction" SET rowid = -rowid')
    foreign = journal.read_bytes()
    assert len(foreign) > 4096
    assert (problem(f"sqlite:///{file}"), count(file)) == ("", 1000)
    query(file, MORE(2000))
    journal.write_bytes(foreign[: len(foreign) // 2])  # only some pages would become old ones
    stays_refused(file, "^the file is damaged")
    journal.unlink()
    assert (problem(f"sqlite:///{file}"), count(file)) == ("", 2000)


def test_a_log_whose_file_is_missing_is_not_thrown_away(file):
    dies(file, MORE(2000))
    file.rename(moved := file.with_name("moved"))
    stays_refused(file, f"is missing, but .*{NAME}-wal is there")
    moved.rename(file)
    assert (problem(f"sqlite:///{file}"), count(file)) == ("", 2000)


SWAP = "import os\n\ndef up(*_):\n    os.path.exists('{0}') and os.rename('{0}', '{1}')\n".format


def test_a_file_that_is_replaced_while_it_is_opened_is_noticed(file, tmp_path):
    shutil.copytree(MIGRATIONS, folder := tmp_path / "migrations")
    (folder / "9999_swap.py").write_text(SWAP(made(tmp_path / "other.db", "other"), file))
    assert "was removed or replaced" in problem(f"sqlite:///{file}", str(folder))
