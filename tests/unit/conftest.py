"""The app in this process, for tests of its routes."""

import pytest

import models
from calls import serving
from kit import storage
from programs import MIGRATIONS
from queries import Queries


@pytest.fixture
def api(tmp_path, database_url):
    with serving(tmp_path, database_url=database_url) as api:
        yield api


@pytest.fixture
def guarded(tmp_path):
    """The same with an API token."""
    with serving(tmp_path, api_token="open sesame") as api:
        yield api


@pytest.fixture
def database(database_url):
    database = storage.connect(database_url, 5)
    storage.prepare(database, MIGRATIONS, models.TABLES)
    models.create_station(database, "Teste")
    yield database
    database.close_all()


@pytest.fixture
def queries(database):
    return Queries(database)
