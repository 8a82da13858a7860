"""The app in this process: start it, send it requests, and check its answers."""

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from webtest import TestApp, TestRequest, TestResponse

import app
from kit.errors import title
from kit.requests import BODY
from kit.settings import Settings
from mqtt_listener import VERDICTS
from programs import wait_until

UNKNOWN = "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"  # no transaction has this id
JSON = "application/json"
KIB = 1024


@contextmanager
def looping():
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def serving(folder="", ready=True, **options):
    """Start the app and yield a TestApp; `options` are settings. Its broker accepts and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        defaults = {"database_url": f"sqlite:///{folder}/energy2go.db", "mqtt_port": silent.getsockname()[1]}
        with looping() as loop, app.Service(Settings(**defaults | options), loop) as running:
            api = client()
            if ready:
                wait_until(lambda: send(api, "GET", "/readyz").json["database"] == "ok", "it has its tables")
            yield api
            done = threading.Event()
            loop.call_soon_threadsafe(lambda: (running.end_waits(), loop.call_later(0.1, done.set)))
            done.wait(5)


def client() -> TestApp:
    """The app as WebTest needs it: a WSGI app whose requests run in the loop."""
    return TestApp(answer)


def answer(environ, start_response):
    """Answer a request: the thread waits for the loop."""
    running = service()

    def run(coroutine):
        if running is None:
            return asyncio.run(coroutine)
        return asyncio.run_coroutine_threadsafe(coroutine, running.loop).result(60)

    body = environ["wsgi.input"].read()
    environ[BODY] = body if len(body) == int(environ.get("CONTENT_LENGTH") or 0) else None
    answer = run(app.app.reply(environ))
    start_response(f"{answer.status} {title(answer.status)}", list(answer.headers.items()))
    head = environ["REQUEST_METHOD"] == "HEAD"
    if answer.more and head:
        run(answer.more.aclose())
    return chunks(answer, run) if answer.more and not head else [b"" if head else answer.body]


def chunks(answer, run):
    """A stream, chunk by chunk."""

    async def step() -> bytes | None:
        return await anext(answer.more, None)

    try:
        yield answer.body
        while chunk := run(step()):
            yield chunk
    finally:
        run(answer.more.aclose())


def service() -> app.Service:
    """The service that runs behind the routes now."""
    return app.app.config["running"]


def send(api, method, path, body=None, content_type=JSON, **headers):
    """Send any request and accept any status; `body` is bytes, or a value that becomes JSON."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = TestRequest.blank(path, method=method, headers=headers)
    if body is not None:
        request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if content_type is not None:
            request.environ["CONTENT_TYPE"] = content_type
    if method == "GET" and path.startswith("/events"):
        return first_chunk(api, request)
    return api.do_request(request, expect_errors=True)


def first_chunk(api, request: TestRequest) -> TestResponse:
    """The answer to a request, without what comes after its first chunk: a stream does not end."""
    status, headers, chunks = request.call_application(api.app)
    try:
        return TestResponse(status=status, headerlist=headers, app_iter=[next(iter(chunks))])
    finally:
        if hasattr(chunks, "close"):
            chunks.close()


def new_station(api, description="Teste") -> int:
    return api.post_json("/stations", {"description": description}, status=201).json["id"]


def new_transaction(api, station_id=1, **headers) -> dict:
    return send(api, "POST", "/transactions", {"station_id": station_id}, **headers).json


def settle(key: str, status="COMPLETED", **texts) -> None:
    """Hand a verdict to the listener, and wait until the ledger has processed it."""
    done = threading.Event()
    verdict = json.dumps({"transaction_id": key, "status": status} | texts).encode()
    service().listener.receive(VERDICTS, verdict, False, done.set)
    assert done.wait(60)


def at_once(number: int, call) -> list:
    """The results of `call` in `number` threads that call it at the same moment."""
    barrier = threading.Barrier(number)

    def run(_):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


def walk(api, url: str) -> list[list]:
    """The items of this page and of all following pages, page by page."""
    pages = []
    while url and len(pages) < 100:
        answer = api.get(url).json
        assert answer.keys() == {"items", "next"}
        pages.append(answer["items"])
        url = answer["next"]
    return pages


def assert_problem(answer, status: int, cause: str, *words: str) -> None:
    """Check that this is a problem (RFC 9457) with this status and title, and these words in its detail."""
    known = answer.status_int, answer.headers["Content-Type"]
    assert known == (status, "application/problem+json"), answer.body
    own = f"/problems/{cause.lower().replace(' ', '-')}"
    kind = "about:blank" if cause == title(status) != "Unauthorized" else own
    assert {"type": kind, "title": cause, "status": status}.items() <= answer.json.items()
    for word in words:
        assert word in answer.json["detail"]


def every_path() -> dict[str, list[str]]:
    """Each path of the app with its methods, for station 1 and a transaction that does not exist."""
    paths = {}
    for route in app.app.routes:
        path = route.rule.replace("<name>", "index.html")
        path = path.replace("<id>", UNKNOWN if "transactions" in path else "1")
        paths.setdefault(path, []).append(route.method)
    return paths
