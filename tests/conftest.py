"""What tests share: folders, programs that are always ended, a database, a ledger that runs."""

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from webtest import TestApp

import app
from programs import Broker, Equipment, Postgres, Service, free_port, wait_until
from settings import Settings

# The same examples in every run, however long one takes, and none of them remembered.
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


@pytest.fixture
def broker(tmp_path, programs):
    """A real Mosquitto on a free port."""
    programs.append(Broker(tmp_path).start())
    return programs[-1]


@pytest.fixture
def equipment(tmp_path, programs, broker):
    """A function that starts the real equipment: `equipment(VALIDATOR_DELAY_MS="100")`; it may not be online yet."""

    def start(**options) -> Equipment:
        programs.append(Equipment(tmp_path, broker, **options).start())
        return programs[-1]

    return start


@pytest.fixture
def service(tmp_path, programs, broker):
    """A function that starts the real service: `service(VALIDATION_RETRY="1")`, connected unless `ready=False`."""

    def start(ready=True, **options) -> Service:
        programs.append(Service(tmp_path, broker, **options).start())
        if ready:
            wait_until(programs[-1].ready, "the service is ready")
        return programs[-1]

    return start


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


@pytest.fixture
def api(database_url):
    """The routes over a real database and a running ledger, without a broker: what is created stays PENDING."""
    app.start(Settings(database_url=database_url, mqtt_port=free_port()))
    yield TestApp(app.app)
    app.stop()


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
            terminalreporter.line(f"| {name} | {injections} | {accepted} | {lost} | {stuck} | {took:.1f} s |")
