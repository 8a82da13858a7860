"""The app, the ledger and the queries in this process. Tests share their databases, emptied for each."""

import asyncio
from contextlib import ExitStack
from functools import cache

import pytest

import app
import models
from calls import client, service, serving
from kit import storage
from kit.sql import execute, is_postgresql
from programs import MIGRATIONS, wait_until
from queries import Queries
from stepped import Bench

RESTART = "ALTER SEQUENCE station_id_seq RESTART", "DELETE FROM sqlite_sequence WHERE name = 'station'"


def empty(database) -> None:
    """Bring a database to the state after its migrations."""
    for table in ('"transaction"', "station"):
        execute(database, f"DELETE FROM {table}")
    execute(database, "DELETE FROM retention")
    execute(database, RESTART[not is_postgresql(database)])


@pytest.fixture(scope="session")
def new_url(request, tmp_path_factory):
    """A function that returns the URL of a new database of this kind."""

    def new(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('kept')}/energy2go.db"
        return request.getfixturevalue("postgres").create()

    return new


@pytest.fixture(scope="session")
def services(new_url):
    """A function that returns the service that all tests share on a database of this kind."""
    with ExitStack() as stack:
        patient = stack.enter_context(pytest.MonkeyPatch.context())
        for limit in ("app.LONGEST_READ", "kit.sql.LONGEST_READ", "ledger.JOB_TIMEOUT"):
            patient.setattr(limit, 60)  # the machine may be busy

        @cache
        def running(kind: str) -> app.Service:
            stack.enter_context(serving(database_url=new_url(kind)))
            return service()

        yield running


def use(running: app.Service, *tokens: str):
    """Put this service behind the routes, with an empty database, during a test."""
    wait_until(lambda: not running.changes._reader, "the changes of an earlier test are forgotten")
    asyncio.run_coroutine_threadsafe(running.ledger.change(empty), running.loop).result(60)
    app.app.use(running, *tokens)
    yield client()
    app.app.use(None)


@pytest.fixture
def api(request, services):
    """A client of the service on SQLite, or on what `parametrize("api", BOTH, indirect=True)` names."""
    yield from use(services(getattr(request, "param", "sqlite")))


@pytest.fixture
def guarded(services):
    """A client of the service with an API token and an old one."""
    yield from use(services("sqlite"), "open sesame", "old sesame")


@pytest.fixture(scope="session")
def databases(new_url):
    """A function that returns the database of this kind that all tests share, with its URL."""
    made = []

    @cache
    def prepared(kind: str):
        url = new_url(kind)
        made.append(storage.connect(url, 5))
        storage.prepare(made[-1], MIGRATIONS)
        return made[-1], url

    yield prepared
    for database in made:
        database.close_all()


@pytest.fixture
def emptied(request, databases):
    """An empty SQLite database, or of the kind that `parametrize` names (see `api`), and its URL."""
    database, url = databases(getattr(request, "param", "sqlite"))
    empty(database)
    yield database, url
    database.close_all()


@pytest.fixture
def database(emptied):
    """One with a station."""
    models.create_station(emptied[0], "Teste")
    return emptied[0]


@pytest.fixture
def queries(database):
    return Queries(database)


@pytest.fixture
def bench(emptied):
    """A ledger that tests call step by step."""
    bench = Bench(database_url=emptied[1])
    yield bench
    bench.close()
