"""Fixtures for all tests: programs that are always ended, and an empty database."""

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from programs import Postgres

# The same examples in every run, however long one takes, and none of them is stored.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def hypothesis_home(tmp_path_factory):
    """What Hypothesis writes all the same does not lie in the tree."""
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture
def programs():
    """A list; whatever program a test puts there is ended after it."""
    started = []
    yield started
    for program in reversed(started):
        program.kill()


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL on a free port."""
    server = Postgres().start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """Where an empty database is: a file, and then a database in PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/var/energy2go.db"
    return request.getfixturevalue("postgres").create()


ROWS = pytest.StashKey[list]()


@pytest.fixture
def table(request):
    """Where a trial puts its row; what is in it is printed at the end of the run."""
    return request.config.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("faults")
        terminalreporter.line("| fault | injections | accepted | lost | stuck | settled after |")
        terminalreporter.line("|---|---|---|---|---|---|")
        for name, injections, accepted, lost, stuck, took in rows:
            terminalreporter.line(
                f"| {name} | {injections} | {accepted} | {lost} | {stuck} | {took:.1f} s |"
            )
