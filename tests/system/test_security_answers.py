"""Answers and logs show no secrets and no internals, and slow clients block no others."""

import json
import re
import socket
import threading
import time

import pytest

from checks import SECRETS, TOKEN, alive, ask, online, settles
from programs import ROOT, Broker, Equipment, Program, Service, wait_until

KEY = "Rotkehlchen-74"


FAILING = """
from app import Service, app
from kit.storage import execute

@app.get("/fails", token=False)
def fails() -> None:
    "Raise."
    raise RuntimeError(f"{__file__} with a secret of /etc")

@app.get("/sql", token=False)
async def sql(service: Service) -> None:
    "Ask for what the database does not have."
    await service.read(execute, "SELECT secret FROM nowhere")
"""


@pytest.fixture
def failing(tmp_path, programs, broker):
    """A function that starts the service with two more routes, which fail."""

    def start(**options) -> Service:
        (tmp_path / "failing.py").write_text(FAILING)
        service = Service(tmp_path, broker, PYTHONPATH=f"{tmp_path}:{ROOT}", **options)
        service.command[-1] = "failing:app"
        programs.append(service.start())
        wait_until(lambda: alive(service), "the service is alive")
        return service

    return start


JSON = [("Content-Type", "application/json")]
ANSWERS = [
    ("GET", "/", [], b"", 200),
    ("GET", "/swagger/", [], b"", 200),
    ("GET", "/swagger/swagger-ui-bundle.js", [], b"", 200),
    ("GET", "/openapi.json", [], b"", 200),
    ("GET", "/healthz", [], b"", 200),
    ("GET", "/stations", [], b"", 200),
    ("HEAD", "/stations", [], b"", 200),
    ("POST", "/stations", JSON, b'{"description": "<script>alert(1)</script>"}', 201),
    ("GET", "/stations/1", [], b"", 200),
    ("POST", "/stations", JSON, b"{", 400),
    ("GET", "/<script>alert(1)</script>", [], b"", 404),
    ("GET", "/%ff", [], b"", 404),
    ("GET", "/stations/2", [], b"", 404),
    ("GET", "/swagger/..%2fapp.py", [], b"", 404),
    ("DELETE", "/stations", [], b"", 405),
    ("BREW", "/stations", [], b"", 405),
    ("POST", "/stations", JSON, b'{"description": "' + b"x" * 70000 + b'"}', 413),
    ("POST", "/stations", [("Content-Type", "text/plain")], b'{"description": "x"}', 415),
    ("POST", "/stations", JSON, b'{"description": 1}', 422),
    ("GET", "/fails", [], b"", 500),
    ("GET", "/sql", [], b"", 500),
]


def test_every_answer_tells_browsers_to_run_nothing_foreign_and_shows_no_internals(failing):
    service = failing()
    for method, path, headers, body, expected in ANSWERS:
        status, answered, text = ask(service, method, path, headers, body)
        assert status == expected, (method, path)
        assert answered["X-Content-Type-Options"] == "nosniff", (method, path)
        assert answered["Referrer-Policy"] == "no-referrer", (method, path)
        rules = dict(rule.strip().split(" ", 1) for rule in answered["Content-Security-Policy"].split(";"))
        assert (
            rules["default-src"]
            == rules["base-uri"]
            == rules["form-action"]
            == rules["frame-ancestors"]
            == "'none'"
        )
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert "unsafe" not in answered["Content-Security-Policy"]
        # What clients wrote comes back as JSON, never as HTML.
        assert "html" not in answered["Content-Type"] or path in ("/", "/swagger/")
        if expected >= 400:
            problem = json.loads(text)
            assert (status, problem["status"]) == (expected, expected)
            assert answered["Content-Type"] == "application/problem+json"
            assert problem.keys() == {"type", "title", "status", "detail"}
            assert not re.search(
                rf'Traceback|File "|{ROOT}|site-packages|SELECT|nowhere|secret', text.decode()
            )
    wait_until(lambda: "a secret of /etc" in service.said(), "the log says why")


# What logs say


def assert_holds_no_secret(program: Program, *more: str) -> None:
    """Check that a program has written something, and no secret."""
    written = program.said() + program.output.read_text()
    assert written, program.name
    for hidden in [*SECRETS.values(), KEY, *more]:
        assert hidden not in written, program.name


def assert_refuses_heads(service: Service) -> None:
    """Check that heads with the token in the wrong place are refused."""
    for header in (f"Authorization Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}\0", f"Expect: {TOKEN}"):
        with socket.create_connection(("127.0.0.1", service.port), 60) as connection:
            connection.sendall(f"GET /stations HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 4")


def fails_in_many_ways(service) -> None:
    """Send secrets in places where they do not belong, and cause errors."""
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    assert settles(service, **authorized)
    for station, status in ((1, 201), (2, 422)):
        answer = service.post("/transactions", {"station_id": station}, Idempotency_Key=KEY, **authorized)
        assert answer.status == status
    assert service.post("/transactions", {"station_id": 1}, Idempotency_Key=KEY).status == 401
    for query in ("stations?limit={}", "stations?{}=1", "transactions?status={}", "events?after={}"):
        assert service.get("/" + query.format(KEY), **authorized).status == 422
    assert service.post("/stations", {KEY: 1}, **authorized).status == 422
    assert service.get("/fails", **authorized).status == 500
    assert service.get("/sql", **authorized).status == 500
    assert_refuses_heads(service)


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_log_holds_a_secret(run, failing, broker, style):
    broker.stop()
    broker = run(Broker, port=broker.port, **SECRETS)
    secret = {name: value for name, value in SECRETS.items() if name != "VALIDATOR_PASSWORD"}
    equipment = run(
        Equipment, broker, VALIDATOR_VERBOSE="1", VALIDATOR_PASSWORD=SECRETS["VALIDATOR_PASSWORD"]
    )
    service = failing(LOG_LEVEL="DEBUG", LOG_FORMAT=style, **secret)
    wait_until(lambda: online(service), "all are online")
    fails_in_many_ways(service)
    # A broker that refuses both passwords.
    broker.stop()
    refusing = run(
        Broker, port=broker.port, MQTT_PASSWORD="Rotkehlchen-5", VALIDATOR_PASSWORD="Zaunkoenig-6"
    )
    wait_until(lambda: "Not authorized" in service.get("/readyz").json["broker"], "the service is refused")
    wait_until(lambda: "Not authorized" in equipment.said(), "the equipment is refused")
    for program in (service, equipment, refusing):
        program.stop()
        assert_holds_no_secret(program, "Rotkehlchen-5", "Zaunkoenig-6")
    for expected in (
        "query.limit: Expected `int`",
        "GET /fails",
        "RuntimeError",
        "Invalid request from",
        "refuses the connection",
    ):
        assert expected in service.said()
    assert "station 1 " in equipment.output.read_text()
    if style == "json":
        for line in service.said().splitlines():
            record = json.loads(line)
            assert all(isinstance(record[name], str) for name in ("time", "level", "logger", "message"))


def test_nonsense_does_not_fill_the_log(run, broker):
    service = run(Service, broker)
    begin = time.monotonic()
    for number in range(200):
        with socket.create_connection(("127.0.0.1", service.port), 60) as connection:
            connection.sendall(b"GET /%d\x01 HTTP/1.1\r\n%d: %d\r\n\r\n" % (number, number, number))
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert service.stop() == 0
    seconds = time.monotonic() - begin
    lines = [line for line in service.said().splitlines() if "Invalid" in line]
    assert 10 <= len(lines) <= 10 * (seconds + 2)
    assert max(map(len, lines)) < 200


# Slow clients


def test_slow_clients_block_no_others(run, broker):
    service = run(Service, broker, THREADS="2")
    body = b'{"description": "slow"}'
    head = (
        b"POST /stations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    hurry, answers = threading.Event(), []

    def drip(at_once: bytes, slowly: bytes) -> None:
        with socket.create_connection(("127.0.0.1", service.port), 60) as connection:
            connection.sendall(at_once)
            for byte in slowly[:-1]:
                connection.sendall(bytes([byte]))
                hurry.wait(0.2)
            hurry.wait(60)
            connection.sendall(slowly[-1:])
            answers.append(connection.recv(100)[:12])

    slow = [(b"", head + body), (b"P", head[1:] + body), (head, body)] * 10
    threads = [threading.Thread(target=drip, args=request, daemon=True) for request in slow]
    for thread in threads:
        thread.start()
    for number in range(1, 31):
        assert (
            service.request("POST", "/stations", {"description": "quick"}, timeout=60).json["id"] == number
        )
        assert service.request("GET", "/healthz", timeout=60).status == 200
    assert answers == []
    hurry.set()
    for thread in threads:
        thread.join(60)
    assert answers == [b"HTTP/1.1 201"] * 30
