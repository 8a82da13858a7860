"""DATABASE_URL: what it names is what is opened, or the service says why not."""

import re
from urllib.parse import quote

import psycopg
import pytest

from faulty import recovers, refused, says
from files import problem
from kit import storage
from programs import MIGRATIONS, free_port

NAMES = "a#b.db", "a?mode=ro", "100%.db", "übung größe.db", " blank .db", "a%23.db", ":memory:"


def test_a_path_of_any_kind_names_one_file(tmp_path):
    for name in NAMES:
        (folder := tmp_path / f"Straße of {name}").mkdir()
        assert problem(f"sqlite:///{quote(str(folder / name))}") == ""
        assert [path.name for path in folder.iterdir()] == [name]
    (tmp_path / "Straße 1").mkdir()  # this needs no percent signs
    assert problem(f"sqlite:///{tmp_path}/Straße 1/ übung größe.db") == ""
    assert (tmp_path / "Straße 1/ übung größe.db").exists()


UNUSABLE = {
    "it is a directory": lambda path: path.mkdir(),
    "a folder is a file": lambda path: (path.parent.rmdir(), path.parent.touch()),
    "it is a dangling link": lambda path: path.symlink_to(path.parent / "nowhere" / "x.db"),
}


@pytest.mark.parametrize("why", UNUSABLE)
def test_a_file_that_cannot_be_opened_is_named_and_nothing_is_made(tmp_path, why):
    path = tmp_path / "place" / "x.db"
    path.parent.mkdir()
    UNUSABLE[why](path)
    before = sorted(tmp_path.rglob("*"))
    assert str(path.parent) in problem(f"sqlite:///{path}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_missing_is_named_and_used_later(tmp_path):
    store = storage.Store(f"sqlite:///{tmp_path}/place/x.db", 3, MIGRATIONS)
    store.recover()
    assert store.problem == f"the folder {tmp_path}/place does not exist"
    (tmp_path / "place").mkdir()
    store.recover()
    assert not store.problem
    store.close()


# PostgreSQL


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


def test_a_server_that_refuses_is_named_until_it_takes_us(postgres, passwords, service):
    url = postgres.fresh()
    assert "does not exist" in problem(f"{url}_unknown")
    assert "refused" in problem(re.sub(r":\d+/", ":1/", url))
    assert "SSL" in problem(f"{url}?sslmode=verify-full")
    postgres.execute("GRANT ALL ON SCHEMA public TO guarded", "shared")
    started = service(ready=False, DATABASE_URL=url.replace("energy2go@", "guarded:wrong@"))
    says(started, "password authentication failed")
    (worker,) = started.children
    detail = refused(started, "password authentication failed")
    assert "wrong" not in detail
    assert "\n" not in detail
    postgres.execute("ALTER ROLE guarded PASSWORD 'wrong'")
    recovers(started)
    assert started.post("/stations", {"description": "Teste"}).status == 201
    for begin, end in (
        ('REVOKE INSERT ON "transaction" FROM guarded', 'GRANT INSERT ON "transaction" TO guarded'),
        ('ALTER TABLE "transaction" RENAME TO hidden', 'ALTER TABLE hidden RENAME TO "transaction"'),
    ):
        postgres.execute(begin, "shared")
        assert started.post("/transactions", {"station_id": 1}).status == 503
        assert started.get("/readyz").status == 503
        postgres.execute(end, "shared")
        recovers(started)
        assert started.post("/transactions", {"station_id": 1}).status == 201
    for statement, ready, sentence in (
        ("SELECT pg_advisory_xact_lock(20260328)", "lock timeout", "lock timeout"),
        ('LOCK TABLE "transaction" IN ACCESS EXCLUSIVE MODE', "failed three times", "is locked by"),
    ):
        with psycopg.connect(postgres.url("shared")) as other:
            other.execute(statement)
            says(started, ready)
            refused(started, sentence)
            other.rollback()
        recovers(started)
        assert started.post("/transactions", {"station_id": 1}).status == 201
    assert started.children == [worker]


def test_a_url_may_name_several_servers_and_a_password_of_any_kind(postgres):
    postgres.fresh()
    query = f"host=127.0.0.1,127.0.0.1&port={free_port()},{postgres.port}"
    query += "&target_session_attrs=read-write&connect_timeout=3"
    database = storage.connect(f"postgresql://energy2go:p%40ss%2Fword%25@/shared?{query}", 1)
    info = database.connection().info
    assert (info.port, info.password) == (postgres.port, "p@ss/word%")
    assert info.get_parameters()["connect_timeout"] == "3"
    assert info.get_parameters()["tcp_user_timeout"] == "10000"
    database.close_all()
