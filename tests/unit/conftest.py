"""The app in this process, for tests of its routes."""

import pytest

from calls import serving


@pytest.fixture
def api(tmp_path, database_url):
    with serving(tmp_path, database_url=database_url) as api:
        yield api


@pytest.fixture
def guarded(tmp_path):
    """The same with an API token."""
    with serving(tmp_path, api_token="open sesame") as api:
        yield api
