"""What tests share: folders, programs that are always ended, a database, a ledger that runs."""

import pytest
from webtest import TestApp

import app
from programs import Broker, Equipment, Service, free_port, wait_until
from settings import Settings


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


@pytest.fixture
def api(tmp_path):
    """The routes over a real SQLite file and a running ledger, without a broker: what is created stays PENDING."""
    app.start(Settings(database_url=f"sqlite:///{tmp_path}/energy2go.db", mqtt_port=free_port()))
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
