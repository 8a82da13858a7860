"""Chromium, a tab in it, and a running service."""

import os
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
from playwright.sync_api import expect, sync_playwright

from programs import Broker, Equipment, HttpServer, Service, wait_until
from tab import QUIET, Tab, processes_at


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add to the report of a test that failed what the programs say, while they still run."""
    report = yield
    if report.when == "call" and report.failed:
        for program in (*item.funcargs.get("programs", ()), item.funcargs["shared"]):
            state = f"{program.name} ({'runs' if program.running else 'has ended'})"
            report.sections.append((state, program.said()[-4000:]))
            if isinstance(program, Service):
                report.sections.append((f"/readyz of {program.name}", readiness(program)))
    return report


def readiness(service: Service) -> str:
    """The answer of /readyz, or why there is none."""
    try:
        answer = service.request("GET", "/readyz", timeout=5)
    except OSError as error:
        return str(error)
    return f"{answer.status} {answer.body.decode()}"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """The browser; it leaves no process behind."""
    home = tmp_path_factory.mktemp("chromium")
    expect.set_options(30_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            chromium_sandbox=False,  # Chromium's sandbox does not work for root
            args=QUIET,
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
        )
        assert processes_at(home)
        yield started
        started.close()
    wait_until(lambda: not processes_at(home), "the browser has ended")


@pytest.fixture
def tab(chromium, programs, shared):
    """A tab. After the test it must have no complaints, and requests to the service only."""
    opened = Tab(chromium)
    yield opened
    for page in opened.context.pages:
        page.unroute_all(behavior="ignoreErrors")  # a handler may still wait for its answer
    opened.context.close()
    hosts = {re.match(r"\w+:(//[^/]*)?", request.url)[0] for request in opened.requests} - {"data:"}
    assert hosts <= {program.url for program in (*programs, shared) if isinstance(program, HttpServer)}
    assert opened.complaints == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A service with a broker and equipment, for all tests of a file that need no settings of their own."""
    folder = tmp_path_factory.mktemp("shared")
    service = Service(folder, Broker(folder))
    service.equipment = Equipment(folder, service.broker)
    yield service
    for program in (service.equipment, service, service.broker):
        program.close()


@pytest.fixture
def running(request, shared):
    """A service with these stations, and equipment that is online: `running("Teste", API_TOKEN="x")`."""

    def start(*stations, **options):
        service = own(request, options) if options else shared
        for program in (service.broker, service.equipment, service):
            if not program.running:
                program.start()
        ready = '"validator":"online"'
        wait_until(lambda: service.ready() and ready in readiness(service), "the equipment is online")
        if service is shared:
            with closing(sqlite3.connect(service.folder / "energy2go.db", timeout=15)) as database, database:
                for table in ("transaction", "station", "sqlite_sequence"):
                    database.execute(f'DELETE FROM "{table}"')
        for description in stations:
            assert service.post("/stations", {"description": description}).status == 201
        return service

    return start


def own(request, options) -> Service:
    """A service with settings of its own, and its equipment."""
    start, equipment = request.getfixturevalue("service"), request.getfixturevalue("equipment")
    service = start(**{name: value for name, value in options.items() if "VALIDATOR" not in name})
    service.equipment = equipment(**{name: value for name, value in options.items() if "VALIDATOR" in name})
    return service
