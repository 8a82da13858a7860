"""Chromium, a tab in it, and a running service."""

import os
import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from programs import Service, wait_until
from tab import QUIET, Tab, processes_at


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add to the report of a test that failed what the programs say, while they still run."""
    report = yield
    if report.when == "call" and report.failed:
        for program in item.funcargs.get("programs", ()):
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
def tab(chromium, programs):
    """A tab. After the test it must have no complaints, and requests to the service only."""
    opened = Tab(chromium)
    yield opened
    opened.context.close()
    hosts = {re.match(r"\w+:(//[^/]*)?", request.url)[0] for request in opened.requests} - {"data:"}
    assert hosts <= {program.url for program in programs if program.name == "service"}
    assert opened.complaints == []


@pytest.fixture
def running(service, equipment):
    """A service with stations and equipment that is online: `running("Teste", VALIDATOR_DELAY_MS="500")`."""

    def start(*stations, **options):
        started = service(**{name: value for name, value in options.items() if "VALIDATOR" not in name})
        started.equipment = equipment(
            **{name: value for name, value in options.items() if "VALIDATOR" in name}
        )
        wait_until(
            lambda: started.get("/readyz").json["equipment"] == {"validator": "online"},
            "the equipment is online",
        )
        for description in stations:
            assert started.post("/stations", {"description": description}).status == 201
        return started

    return start
