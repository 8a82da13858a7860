"""Fixtures for all tests: a list of programs to end, and an empty database."""

import signal

import pytest

from postgres import BOTH, Postgres
from programs import Program

# Under nohup or in the background, signals are ignored, and so they would be in the programs of the tests.
for number, action in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, action)

ROWS = pytest.StashKey[list]()


def ending():
    """A list; each program that a test puts there is ended afterwards, others by their `kill`."""
    started = []
    yield started
    started.reverse()
    ours = [program for program in started if isinstance(program, Program)]
    for program in ours:
        program.terminate()  # all at once, because each takes a moment to end
    for program in ours:
        program.close()
    for other in started:
        if other not in ours:
            other.kill()


programs = pytest.fixture(ending)
programs_of_file = pytest.fixture(ending, scope="module")


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL on a free port; each process that runs tests has one of its own."""
    server = Postgres().start()
    yield server
    server.remove()


@pytest.fixture(params=BOTH)
def database_url(request, tmp_path):
    """The URL of an empty database: a new SQLite file, and then the emptied PostgreSQL database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/energy2go.db"
    return request.getfixturevalue("postgres").fresh()


@pytest.fixture
def table(request):
    """The rows that trials add; they are printed at the end of the run."""
    return request.config.stash.setdefault(ROWS, [])


def pytest_addoption(parser):
    parser.addoption("--sqlite-only", action="store_true", help="leave out the cases that need PostgreSQL")


def pytest_collection_modifyitems(config, items):
    """Leave out what needs PostgreSQL if `--sqlite-only` asks for it."""
    if not config.getoption("--sqlite-only"):
        return
    kept, left_out = [], []
    for item in items:
        parameters = getattr(item, "callspec", None)
        needs = parameters is not None and "postgresql" in parameters.params.values()
        (left_out if needs or "postgres" in item.fixturenames else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


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
