"""What counts as a broken database, and what the service needs of one and asks for itself."""

import re
from concurrent.futures import ThreadPoolExecutor

import peewee
import pytest

import models
from files import problem
from kit import sql
from kit.sql import execute, is_postgresql
from kit.storage import InDoubt, NotWritten, Store, Unreadable
from programs import MIGRATIONS

only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def store(database_url):
    store = Store(database_url, 3, MIGRATIONS)
    store.recover()
    assert not store.problem
    yield store
    store.close()


MISTAKES = [  # in one of our queries, or in a client's value
    ("SELEKT 1",),
    ("SELECT * FROM stations",),
    ("SELECT town FROM station",),
    ("SELECT 1 FROM station WHERE id = 1", 2),
    ("SELECT 1 FROM station WHERE description = ?", object()),
    ("SELECT 1 FROM station WHERE description = ?", "\ud800"),
    ("INSERT INTO station (id) VALUES (1)",),
]


def test_a_mistake_is_raised_once_and_the_database_is_not_blamed(store):
    for mistake in MISTAKES:
        calls = []

        def call(database, mistake=mistake, calls=calls) -> None:
            calls.append(database)
            execute(database, *mistake)

        if mistake is not MISTAKES[-1]:
            with pytest.raises((peewee.DatabaseError, UnicodeError)) as raised:
                store.read(call)
            assert not isinstance(raised.value, Unreadable)
            assert (len(calls), store.read_problem) == (1, "")
        with pytest.raises((peewee.DatabaseError, UnicodeError)) as raised, store.transaction():
            call(store.database)
        assert not isinstance(raised.value, NotWritten)
        assert not store.problem
    with store.transaction():
        assert models.create_station(store.database, "Teste").id
    assert store.read(models.get_station, 1).description == "Teste"


def test_a_schema_that_someone_has_changed_is_the_databases_fault(store):
    for change in ("COLUMN description TO hidden", "TO hidden"):
        execute(store.database, f"ALTER TABLE station RENAME {change}")
        with pytest.raises(Unreadable):
            store.read(models.list_stations, 1)
        with pytest.raises(NotWritten), store.transaction():
            models.create_station(store.database, "Teste")


def test_a_read_that_takes_too_long_is_ended(store, monkeypatch):
    monkeypatch.setattr(sql, "LONGEST_READ", 0.2)
    endless = "WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT count(*) FROM x"
    with ThreadPoolExecutor() as reader, pytest.raises(Unreadable):
        reader.submit(store.read, execute, endless).result()
    with store.transaction():  # what comes later has no limit
        assert execute(store.database, "SELECT 1") == [(1,)]
        if is_postgresql(store.database):
            assert execute(store.database, "SHOW statement_timeout") == [("0",)]


DEFAULTS = {
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "client_encoding": "'LATIN1'",
}


@only_postgresql
def test_the_defaults_of_the_server_do_not_matter(store, postgres, monkeypatch):
    for name, value in DEFAULTS.items():
        postgres.execute(f"ALTER DATABASE shared SET {name} = {value}")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    store.database.close_all()
    isolation = lambda database: execute(database, "SHOW transaction_isolation")  # noqa: E731
    with store.transaction():
        assert isolation(store.database) == [("read committed",)]
        assert models.create_station(store.database, "Ωmega 電池").id == 1
    assert store.read(isolation) == [("read committed",)]
    assert store.read(models.get_station, 1).description == "Ωmega 電池"


@only_postgresql
def test_nothing_is_prepared_or_set_in_a_session_that_others_may_get(store):
    """PgBouncer hands each transaction another session of the server."""
    for _ in range(20):
        with store.transaction():
            models.create_station(store.database, "Teste")
        store.read(models.list_stations, 5)
    assert execute(store.database, "SELECT * FROM pg_prepared_statements") == []
    changed = execute(store.database, "SELECT name FROM pg_settings WHERE source = 'session'")
    assert {name for (name,) in changed} <= {"application_name", "client_encoding"}


def test_a_database_that_is_not_in_utf8_is_refused_in_one_sentence(postgres):
    postgres.execute(
        "CREATE DATABASE bytes ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    found = problem(postgres.url("bytes"))
    postgres.execute("DROP DATABASE bytes")
    assert re.fullmatch(r"its encoding is SQL_ASCII, .*UTF8.*docs/operations\.md.*", found)


INDEXES = """transaction_station_id_id transaction_status_id transaction_station_id_status_id
    transaction_retry_at transaction_expires_at transaction_idempotency_key
    transaction_updated_id transaction_station_id_updated_id"""
ROW = """INSERT INTO "transaction" (id, station_id, status, created, updated, idempotency_key, attempts)
    VALUES ('{0:032x}', 1, 'ERROR', {0}, {0}, 'key', 1)"""


@pytest.mark.parametrize("instead", ["", "CREATE INDEX {} ON station (description)"])
def test_an_index_of_ours_that_is_missing_or_other_is_created_again(store, database_url, instead, caplog):
    execute(store.database, "CREATE INDEX theirs ON station (description)")
    for name in INDEXES.split():
        execute(store.database, f"DROP INDEX {name}")
        if instead:
            execute(store.database, instead.format(name))
    store.database.close_all()
    for _ in range(2):  # the second start finds nothing to do
        assert problem(database_url) == ""
    assert caplog.text.count("was missing and is created again") == len(INDEXES.split())
    assert {*INDEXES.split(), "theirs"} <= {
        index.name for table in store.database.get_tables() for index in store.database.get_indexes(table)
    }
    models.create_station(store.database, "Teste")
    execute(store.database, ROW.format(1))
    with pytest.raises(peewee.IntegrityError):
        execute(store.database, ROW.format(2))


class LockMissed(Exception):
    sqlstate = "55P03"  # lock_not_available


@only_postgresql
def test_an_error_from_commit_is_in_doubt_though_a_lock_was_missed_before(store, postgres):
    """Python hangs the earlier error on the later one, which must not be taken for it."""

    def write() -> None:
        with store.transaction():
            models.create_station(store.database, "Teste")
            ours = "FROM pg_stat_activity WHERE datname = 'shared'"
            postgres.execute(f"SELECT pg_terminate_backend(pid) {ours}")

    try:
        raise LockMissed
    except LockMissed:
        with pytest.raises(InDoubt):
            write()
