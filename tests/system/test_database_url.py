"""DATABASE_URL: what it names is what is opened, or the service says why not."""

import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from faulty import recovers, refused_at_once, says
from programs import ROOT, Service

REFUSED = [
    "sqlite:////{folder}/a#b.db",
    "sqlite:////{folder}/a.db?z.db",
    "sqlite:////{folder}/a.db?mode=ro",
    "sqlite:////{folder}/a.db?journal_mode=delete",
    "sqlite:///:memory:",
    "sqlite:////{folder}/a%00.db",
    "sqlite:////{folder}/a%ff.db",
    "sqlite:///",
    "sqlite://{folder}/a.db",
    "mysql://127.0.0.1/energy2go",
    "postgresql://127.0.0.1/energy2go?timeout=5",
    "postgresql://127.0.0.1/energy2go?max_connections=5",
    "postgresql://127.0.0.1/energy2go?stale_timeout=5",
    "postgresql://127.0.0.1/energy2go?unknown=1",
    "postgresql://127.0.0.1/energy2go?sslmode=nonsense",
    "postgresql://127.0.0.1:port/energy2go",
    "postgresql://[::1/energy2go",
]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, broker, url):
    before = names(tmp_path), names(ROOT)
    service = Service(tmp_path, broker, DATABASE_URL=url.replace("/{folder}", str(tmp_path)))
    ended = subprocess.run(
        service.command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"DATABASE_URL: .+ See the line of DATABASE_URL in \.env\.\n", ended.stderr)
    assert (names(tmp_path), names(ROOT)) == before


@pytest.mark.parametrize(
    "name", ["a#b.db", "a?mode=ro", "100%.db", "übung größe.db", " blank .db", "a%23.db", ":memory:"]
)
def test_a_path_of_any_kind_names_one_file(tmp_path, run, broker, name):
    folder = tmp_path / "Straße 1"
    folder.mkdir()
    service = run(Service, broker, DATABASE_URL=f"sqlite:///{quote(str(folder / name))}")
    recovers(service)
    assert service.post("/stations", {"description": "Teste"}).status == 201
    assert set(names(folder)) == {name, f"{name}-wal", f"{name}-shm"}
    service.stop()
    assert names(folder) == [name]


def test_a_path_needs_no_percent_signs_for_umlauts_and_blanks(tmp_path, run, broker):
    service = run(Service, broker, DATABASE_URL=f"sqlite:///{tmp_path}/übung 1.db")
    recovers(service)
    assert (tmp_path / "übung 1.db").exists()


def make_directory(path: Path) -> None:
    path.mkdir()


def make_file_for_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


UNUSABLE = {
    "its folder does not exist": lambda path: path.parent.rmdir(),
    "it is a directory": lambda path: path.mkdir(),
    "a folder is a file": make_file_for_folder,
    "it is a dangling link": lambda path: path.symlink_to(path.parent / "nowhere" / "x.db"),
}


@pytest.mark.parametrize("why", UNUSABLE)
def test_a_file_that_cannot_be_opened_is_named_at_once_and_used_later(tmp_path, run, broker, service, why):
    path = tmp_path / "place" / "x.db"
    path.parent.mkdir()
    UNUSABLE[why](path)
    before = sorted(map(str, tmp_path.rglob("*")))
    started = service(ready=False, DATABASE_URL=f"sqlite:///{path}")
    says(started, str(path.parent))
    refused_at_once(started, str(path.parent))
    assert started.get("/healthz").status == 503
    (worker,) = started.children
    logs = {str(tmp_path / "service.log"), str(tmp_path / "service.out")}
    assert set(map(str, tmp_path.rglob("*"))) - logs == set(before) - logs
    for wrong in (path, path.parent):
        if wrong.is_symlink() or wrong.is_file():
            wrong.unlink()
        elif wrong.is_dir():
            wrong.rmdir()
    path.parent.mkdir()
    recovers(started)
    assert started.post("/stations", {"description": "Teste"}).status == 201
    assert started.children == [worker]


@pytest.fixture
def passwords(postgres):
    """PostgreSQL asks for a password; the one of this user is right."""
    hba = postgres.cluster / "pg_hba.conf"
    before = hba.read_text()
    postgres.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    hba.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
    postgres.execute("SELECT pg_reload_conf()")
    yield
    hba.write_text(before)
    postgres.execute("SELECT pg_reload_conf()")
    postgres.fresh()
    postgres.execute("DROP ROLE guarded")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: url.replace("energy2go@", "guarded:wrong@"), "password authentication failed"),
        (lambda url: f"{url}_unknown", "does not exist"),
        (lambda url: re.sub(r":\d+/", ":1/", url), "refused"),
        (lambda url: f"{url}?sslmode=verify-full", "SSL"),
    ],
    ids=["password", "database", "port", "encryption"],
)
def test_a_server_that_refuses_is_named_at_once(postgres, passwords, service, change, reason):
    started = service(ready=False, DATABASE_URL=change(postgres.fresh()))
    says(started, reason)
    detail = refused_at_once(started, reason)
    assert "wrong" not in detail
    assert "\n" not in detail
    (worker,) = started.children
    refused_at_once(started, reason)
    assert started.children == [worker]


HELD = {
    "the lock of writers": ("SELECT pg_advisory_xact_lock(20260328)", "lock timeout", "lock timeout"),
    "a table": ('LOCK TABLE "transaction" IN ACCESS EXCLUSIVE MODE', "failed three times", "is locked by"),
}


@pytest.mark.parametrize("lock", HELD)
def test_a_lock_that_another_client_holds_counts_as_a_failure_after_five_seconds(service, postgres, lock):
    statement, ready, refused = HELD[lock]
    started = service(DATABASE_URL=postgres.fresh())
    started.post("/stations", {"description": "Teste"})
    with psycopg.connect(postgres.url("shared")) as other:
        other.execute(statement)
        says(started, ready, seconds=7)
        for _ in range(3):
            refused_at_once(started, refused)
        other.rollback()
    assert recovers(started) < 3
    assert started.post("/transactions", {"station_id": 1}).status == 201


RIGHTS = {
    "a right is revoked": (
        'REVOKE INSERT ON "transaction" FROM guarded',
        'GRANT INSERT ON "transaction" TO guarded',
    ),
    "a table is renamed": (
        'ALTER TABLE "transaction" RENAME TO hidden',
        'ALTER TABLE hidden RENAME TO "transaction"',
    ),
}


@pytest.mark.parametrize("change", RIGHTS)
def test_a_change_by_an_administrator_is_named_and_its_end_is_noticed(postgres, passwords, service, change):
    url = postgres.fresh().replace("energy2go@", "guarded:right@")
    postgres.execute("GRANT ALL ON SCHEMA public TO guarded", "shared")
    started = service(DATABASE_URL=url)
    started.post("/stations", {"description": "Teste"})
    begin, end = RIGHTS[change]
    postgres.execute(begin, "shared")
    answer = started.post("/transactions", {"station_id": 1})
    assert answer.status == 503, answer.body
    assert started.get("/readyz").status == 503
    postgres.execute(end, "shared")
    recovers(started)
    assert started.post("/transactions", {"station_id": 1}).status == 201
