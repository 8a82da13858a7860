"""Logs hold no secrets, and nobody can fill them."""

import json
import time

import pytest

from programs import ROOT, SECRETS, Broker, Equipment, Program, Service, free_port, wait_until
from raw import connect

KEY = "Rotkehlchen-74"
TOKEN = SECRETS["API_TOKEN"]
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
FAILING = """
from app import app

@app.get("/fails", token=False)
def fails() -> None:
    "Raise."
    raise RuntimeError("it fails")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def equipment(folder, programs_of_file):
    """The equipment with a secret password; it logs every line."""
    broker = Broker(folder, **SECRETS).start()
    programs_of_file += [broker, Equipment(folder, broker, VALIDATOR_VERBOSE="1").start()]
    return programs_of_file[-1]


@pytest.fixture(scope="module")
def failing(folder, programs_of_file, equipment):
    """A service with secrets that logs every line, and has one more route, which fails."""
    (folder / "failing.py").write_text(FAILING)
    options = {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": "json", "PYTHONPATH": f"{folder}:{ROOT}"}
    broker, port = programs_of_file[0], free_port()
    # It listens to other machines, with a token: that needs no warning.
    service = Service(folder, broker, port, BIND=f"0.0.0.0:{port}", **options)
    service.command[-1] = "failing:app"
    programs_of_file.append(service.start())
    wait_until(service.online, "all are online")
    return service


def assert_holds_no_secret(program: Program, *more: str) -> None:
    """Check that a program has written something, and no secret."""
    written = program.said() + program.output.read_text()
    assert written, program.name
    for hidden in [*SECRETS.values(), KEY, *more]:
        assert hidden not in written, program.name


def fails_in_many_ways(service: Service) -> None:
    """Send secrets in places where they do not belong, and cause errors."""
    assert service.settles(**KNOWN)
    for station, status in ((1, 201), (2**31 - 1, 422)):
        answer = service.post("/transactions", {"station_id": station}, Idempotency_Key=KEY, **KNOWN)
        assert answer.status == status
    assert service.post("/transactions", {"station_id": 1}, Idempotency_Key=KEY).status == 401
    for query in ("stations?limit={}", "stations?{}=1", "transactions?status={}", "events?after={}"):
        assert service.get("/" + query.format(KEY), **KNOWN).status == 422
    assert service.post("/stations", {KEY: 1}, **KNOWN).status == 422
    assert service.get("/fails").status == 500
    for header in (f"Authorization Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}\0", f"Expect: {TOKEN}"):
        with connect(service.port) as connection:
            connection.sendall(f"GET /stations HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_no_log_holds_a_secret(run, folder, failing, equipment, programs_of_file):
    fails_in_many_ways(failing)
    # A broker that refuses both passwords.
    broker, others = programs_of_file[0], ("Rotkehlchen-5", "Zaunkoenig-6")
    broker.stop()
    refusing = run(Broker, port=broker.port, MQTT_PASSWORD=others[0], VALIDATOR_PASSWORD=others[1])
    wait_until(lambda: "Not authorized" in failing.get("/readyz").json["broker"], "the service is refused")
    wait_until(lambda: "Not authorized" in equipment.said(), "the equipment is refused")
    for program in (failing, equipment, refusing):
        program.stop()
        assert_holds_no_secret(program, *others)
    texts = "query.limit: Expected `int`", "GET /fails", "RuntimeError", "Invalid request from"
    for expected in (*texts, "refuses the connection"):
        assert expected in failing.said()
    assert "station 1 " in equipment.output.read_text()
    for line in failing.said().splitlines():
        assert json.loads(line)["event"] != "open"  # the warning of a service without a token


def test_nonsense_does_not_fill_the_log_and_a_missing_token_has_a_line(run, broker):
    port = free_port()
    service = run(Service, broker, port=port, BIND=f"0.0.0.0:{port}")
    begin = time.monotonic()
    for number in range(200):
        with connect(port) as connection:
            connection.sendall(b"GET /%d\x01 HTTP/1.1\r\n%d: %d\r\n\r\n" % (number, number, number))
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert service.stop() == 0
    seconds = time.monotonic() - begin
    lines = [line for line in service.said().splitlines() if "Invalid" in line]
    assert 9 <= len(lines) <= 10 * (seconds + 2)  # the warning below may be the tenth of its second
    assert max(map(len, lines)) < 200
    (warning,) = [line for line in service.said().splitlines() if "WARNING gunicorn: no API_TOKEN" in line]
    assert f"BIND=0.0.0.0:{port}" in warning
