"""Backup and restore with the real programs: under load, on a full disk, with make."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from files import in_a_namespace, made
from programs import ROOT, wait_until

SMALL_DISK = """
mount -t tmpfs -o size=8m tmpfs "$1" && cp "$2" "$1/energy2go.db" || exit 3
DATABASE_URL="sqlite:///$1/energy2go.db" "$0" -m kit.backup $3
echo "$?"
ls "$1"
cmp "$2" "$1/energy2go.db" && echo "unchanged"
"""


def make(target: str, database: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a target of the Makefile for this database, without installing anything."""
    given = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "-s", "-o", ".venv/run", f"VENV={sys.executable}", target, *given]
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{database}"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def stored(file: Path) -> dict[str, str]:
    """The transactions in a file: their status by id."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return dict(database.execute('SELECT id, status FROM "transaction"'))


def test_a_backup_under_load_has_what_was_accepted_before_and_a_restore_brings_it_back(trial):
    run = trial().start()
    file = run.folder / "energy2go.db"
    for _ in range(3):
        before = {key.replace("-", "") for key in run.load.accepted}
        done = make("backup", file)
        assert done.returncode == 0, done.stderr
        copy = Path(done.stdout.rstrip("\n"))
        assert re.fullmatch(r"energy2go-\d{8}T\d{6}Z\.db", copy.name)
        assert before <= stored(copy).keys()
        run.more()
    assert set(run.load.statuses) == {201}
    refused = make("restore", file, FILE=str(copy))
    assert refused.returncode
    assert f"nothing was restored: a process has {file} open, so stop the service" in refused.stderr
    run.more()
    run.load.stop()
    run.service.crash()
    everything, kept_in_backup = stored(file), stored(copy)
    done = make("restore", file, FILE=str(copy))
    assert done.returncode == 0, done.stderr
    kept = re.fullmatch(r".* is restored\. The file that it replaced is (.*)\.\n", done.stdout)[1]
    assert stored(Path(kept)) == everything
    assert stored(file) == kept_in_backup
    run.service.start()
    run.ready()
    wait_until(lambda: run.status("PENDING") == 0, "what was PENDING is settled")
    assert stored(file).keys() == kept_in_backup.keys()
    settled = {key for key, status in kept_in_backup.items() if status != "PENDING"}
    assert {key: stored(file)[key] for key in settled} == {key: kept_in_backup[key] for key in settled}


@pytest.mark.parametrize("command", ["", "restore {}"])
def test_a_full_disk_leaves_the_old_database_and_nothing_half_written(command, tmp_path):
    file = made(tmp_path / "energy2go.db", "Teste")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("CREATE TABLE filling AS SELECT randomblob(5000000) AS content")
    (large := tmp_path / "large.db").write_bytes(file.read_bytes())
    (disk := tmp_path / "disk").mkdir()
    done = in_a_namespace(SMALL_DISK, str(disk), str(file), command.format(large))
    assert done.stdout.split("\n") == ["1", "energy2go.db", "unchanged", ""], done
    assert re.search(r"(No space left on device|database or disk is full)\.\n$", done.stderr)
