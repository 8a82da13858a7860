"""The clients in docs/http.md follow events, and miss nothing when the service restarts."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from programs import ROOT, wait_until

PAGE = (ROOT / "docs/http.md").read_text()
LIBRARY = ROOT / ".venv/fetch-event-source/lib/esm"
MODULES = '{"imports": {"@microsoft/fetch-event-source": "/library/index.js"}}'


def example(language: str, word: str) -> str:
    """The block in this language that has this word."""
    (found,) = [code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in code]
    return found


@pytest.fixture
def python(tmp_path):
    """A function that starts the example in Python."""
    started = []

    def start(url: str, token: str) -> Callable[[], list[str]]:
        code, output = (
            example("python", "httpx_sse").replace("http://127.0.0.1:8000", url),
            tmp_path / "output",
        )
        with output.open("w") as file:
            environment = os.environ | {"API_TOKEN": token}
            started.append(subprocess.Popen([sys.executable, "-c", code], stdout=file, env=environment))
        return lambda: output.read_text().splitlines()

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def browser(tab):
    """A function that opens a page of the service with an example."""

    def start(url: str, token: str, word: str) -> Callable[[], list[str]]:
        said = []
        tab.page.on("console", lambda message: said.append(message.text))
        html = f'<script type="importmap">{MODULES}</script><script type="module">'
        html += f'const token = "{token}";\n{example("js", word)}</script>'
        tab.page.route(f"{url}/example", lambda route: route.fulfill(body=html, content_type="text/html"))
        files = {file.stem: file.read_text() for file in LIBRARY.glob("*.js")}
        tab.page.route(
            re.compile("/library/"),
            lambda route: route.fulfill(
                body=files[re.search(r"(\w+)(\.js)?$", route.request.url)[1]], content_type="text/javascript"
            ),
        )
        tab.page.goto(f"{url}/example")
        return lambda: tab.page.evaluate("1") and said

    return start


@pytest.mark.parametrize("client", ["new EventSource", "fetchEventSource", "httpx_sse"])
def test_a_client_misses_nothing_when_the_service_restarts(client, running, python, browser, tab):
    token = "" if client == "new EventSource" else "open-sesame"
    authorization = f"Bearer {token}"
    service = running(API_TOKEN=token)
    said = python(service.url, token) if client == "httpx_sse" else browser(service.url, token, client)
    followed = b"energy2go_followers 1.0"
    wait_until(lambda: followed in service.get("/metrics", Authorization=authorization).body, "it follows")

    def settled() -> str:
        """A line that the client prints for a new transaction."""
        options = {"Prefer": "wait=20", "Authorization": authorization}
        new = service.post("/transactions", {"station_id": 1}, **options).json
        return f"{new['id']} {new['status']}"

    service.post("/stations", {"description": "Teste"}, Authorization=authorization)
    first = settled()
    wait_until(lambda: first in said(), "it prints the verdict")
    with tab.trouble():
        service.stop()
        service.start()
        wait_until(service.ready, "it is ready again")
        second = settled()
        wait_until(lambda: second in said(), "it prints the next one")
    assert [line for line in said() if line in (first, second)] == [first, second]
