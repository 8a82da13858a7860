"""The log and the metrics of running programs."""

import json
from datetime import datetime, timedelta

import pytest

import raw
from installation import Installation
from programs import Service, wait_until


@pytest.fixture(scope="module")
def installed(tmp_path_factory, programs_of_file):
    """The three programs with all lines, as JSON."""
    options = {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": "json"}
    installed = Installation(tmp_path_factory.mktemp("log"), programs_of_file, **options)
    installed.equipment.environment["VALIDATOR_VERBOSE"] = "1"
    return installed.start()


def lines(service: Service, word: str) -> list[dict]:
    """The complete lines of the log that have this word."""
    return [json.loads(line) for line in service.said().rpartition("\n")[0].splitlines() if word in line]


def test_a_transaction_is_followed_by_its_id_and_that_of_its_request(installed):
    service = installed.service
    answer = installed.transact(X_Request_ID="mine-1")
    key, status = answer.json["id"], answer.json["status"]
    service.get(f"/transactions/{key}")
    ends = "stored", "asked", "answered", status.lower()

    def events() -> list[str]:
        return [line["event"] for line in lines(service, key) if line.get("transaction") == key]

    wait_until(lambda: events() == [f"transaction_{end}" for end in ends], "its four events are logged")
    wait_until(lambda: key in installed.equipment.output.read_text(), "the equipment's line")
    wait_until(lambda: lines(service, f"GET /transactions/{key}"), "the line of the request")
    wait_until(lambda: len(lines(service, "mine-1")) == 2, "the ledger's line and that of the request")
    stored, asked = lines(service, "mine-1")
    assert stored["message"].startswith(f"{key} is stored")
    assert asked["message"].startswith("POST /transactions")
    said = lines(service, "")
    assert {"gunicorn", "kit.api", "mqtt_listener"} <= {line["logger"] for line in said}
    for line in said:
        assert {"time", "level", "event", "message", "request_id", "logger", "pid"} <= line.keys()
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_what_is_not_http_has_an_id_too_and_not_that_of_an_earlier_request(installed):
    service = installed.service
    for _ in range(40):
        service.get("/stations", X_Request_ID="earlier")
    with raw.connect(service.port) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head = raw.answer(connection).partition(b"\r\n\r\n")[0].decode()
    (line,) = [line for line in head.splitlines() if line.startswith("X-Request-ID: ")]
    wait_until(lambda: lines(service, line.partition(" ")[2]), "the warning has it")


def test_lines_below_the_level_are_left_out(running):
    started = running(LOG_LEVEL="WARNING")
    started.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    started.get("/nothing")
    assert started.stop() == 0
    assert " INFO " not in started.said()
    assert " DEBUG " not in started.said()
