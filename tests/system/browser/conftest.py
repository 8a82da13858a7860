"""Chromium, a tab in it, and a running service."""

import os
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
from playwright.sync_api import expect, sync_playwright

from installation import Installation
from programs import HttpServer
from tab import QUIET, TOKEN, Tab, live


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add to the report of a test that failed what the programs have logged."""
    report = yield
    if report.when == "call" and report.failed and "shared" in item.funcargs:
        for program in (item.funcargs["shared"].equipment, item.funcargs["shared"].service):
            report.sections.append((program.name, program.said()[-4000:]))
    return report


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """The browser."""
    home = tmp_path_factory.mktemp("chromium")
    expect.set_options(60_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            chromium_sandbox=False,  # Chromium's sandbox does not work for root
            args=QUIET,
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
        )
        yield started
        started.close()


@pytest.fixture
def tab(chromium, programs, shared):
    """A tab. After the test it must have no complaints, and requests to the service only."""
    opened = Tab(chromium)
    yield opened
    for page in opened.context.pages:
        page.unroute_all(behavior="ignoreErrors")  # a handler may still wait for its answer
    opened.context.close()
    hosts = {re.match(r"\w+:(//[^/]*)?", request.url)[0] for request in opened.requests} - {"data:"}
    servers = [program for program in (*programs, shared.service) if isinstance(program, HttpServer)]
    assert hosts <= {server.url for server in servers}
    assert opened.complaints == []


@pytest.fixture(scope="module")
def shared(request, tmp_path_factory, programs_of_file):
    """The programs of a file, which may have OPTIONS."""
    options = getattr(request.module, "OPTIONS", {})
    return Installation(tmp_path_factory.mktemp("shared"), programs_of_file, **options)


@pytest.fixture
def running(shared):
    """A service with nothing but these stations, and with equipment that is online: `running("Teste")`."""

    def start(*stations: str):
        for program in (shared.broker, shared.equipment, shared.service):
            if not program.running:
                program.start()
        shared.ready()
        with closing(sqlite3.connect(shared.folder / "energy2go.db", timeout=15)) as database, database:
            for table in ("transaction", "station", "sqlite_sequence"):
                database.execute(f'DELETE FROM "{table}"')
        for description in stations:
            assert shared.service.post("/stations", {"description": description}, **TOKEN).status == 201
        return shared

    return start


@pytest.fixture
def opened(running, tab):
    """A function like `running` that also opens the page: returns the programs and the page."""

    def start(*stations: str, clock=False):
        shared = running(*stations)
        if clock:
            tab.page.clock.install()  # it goes on by itself, and the test can put it forward
        tab.page.goto(shared.service.url)
        live(tab.page)
        return shared, tab.page

    return start
