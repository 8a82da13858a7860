"""The log and the metrics of running programs."""

import json
import re
from datetime import datetime, timedelta

import pytest

import raw
from installation import Installation
from programs import Service, wait_until


def records(service: Service) -> list[dict]:
    """The complete lines of a log in JSON."""
    return [json.loads(line) for line in service.said().rpartition("\n")[0].splitlines()]


@pytest.fixture(scope="module", params=["text", "json"])
def verbose(request, tmp_path_factory, programs_of_file):
    """The three programs with all lines, in each format."""
    options = {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": request.param}
    installed = Installation(tmp_path_factory.mktemp(request.param), programs_of_file, **options)
    installed.equipment.environment["VALIDATOR_VERBOSE"] = "1"
    return installed.start()


def lines(service: Service, word: str) -> list[str]:
    return [line for line in service.said().splitlines() if word in line]


def test_each_request_that_failed_gets_one_line_with_its_id(service):
    started = service()
    started.get("/stations", X_Request_ID="fine")
    failed = {"/stations/9?token=sesame": 404, "/stations/x": 422, "/nothing": 404}
    for number, (target, status) in enumerate(failed.items()):
        assert started.get(target, X_Request_ID=f"bad-{number}").status == status
    assert started.post("/transactions", b"{", X_Request_ID="bad-3").status == 400
    assert started.get("/readyz", X_Request_ID="probe").status == 503
    assert started.get("/nothing", X_Request_ID="last").status == 404
    wait_until(lambda: lines(started, "last"), "the line of the last request")
    for number, (target, status) in enumerate([*failed.items(), ("/transactions", 400)]):
        (line,) = lines(started, f"bad-{number}")
        assert f"{target.partition('?')[0]} from 127.0.0.1: {status} in " in line
        assert "INFO" in line
    assert not re.search("fine|probe|sesame", started.said())


def test_a_flood_of_requests_that_fail_does_not_fill_the_log(service):
    started = service()
    flood = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 999
    flood += b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert raw.talk(started.port, flood, half_close=False).count(b"HTTP/1.1 404") == 1000
    assert started.stop() == 0
    times = [line[:19] for line in lines(started, "GET /nothing")]
    assert times
    assert max(map(times.count, times)) <= 2 * 100  # its seconds need not be those of the limit


def test_the_questions_and_the_connections_are_counted(running):
    started = running()
    for _ in range(20):
        started.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    text = started.get("/metrics").body.decode()
    assert 'energy2go_questions_total{time="first"} 20.0' in text
    assert 'energy2go_verdicts_total{kind="settled"} 20.0' in text
    assert "energy2go_verdict_seconds_count 20.0" in text
    assert "energy2go_broker_connected 1.0" in text
    assert 'energy2go_equipment_online{equipment="validator"} 1.0' in text


def test_a_transaction_is_followed_by_its_id_and_that_of_its_request(verbose):
    service = verbose.service
    answer = verbose.transact(X_Request_ID="mine-1")
    key, status = answer.json["id"], answer.json["status"]
    service.get(f"/transactions/{key}")
    wanted = ["is stored", "is asked", "is answered", f"is {status}"]
    found = lambda: [line for line in lines(service, key) if "HTTP" not in line and "GET" not in line]  # noqa: E731
    wait_until(lambda: len(found()) >= 4, "its four events are logged")
    assert [word for line in found() for word in wanted if f"{key} {word}" in line] == wanted
    wait_until(lambda: key in verbose.equipment.output.read_text(), "the equipment's line")
    wait_until(lambda: lines(service, f"GET /transactions/{key}"), "the line of the request")
    wait_until(lambda: len(lines(service, "mine-1")) == 2, "the ledger's line and that of the request")
    stored, asked = lines(service, "mine-1")
    assert "is stored" in stored
    assert "POST /transactions" in asked
    if service.environment["LOG_FORMAT"] == "json":
        said = records(service)
        assert {"gunicorn", "kit.api", "mqtt_listener"} <= {line["logger"] for line in said}
        events = [line["event"] for line in said if line.get("transaction") == key]
        ends = "stored", "asked", "answered", status.lower()
        assert events == [f"transaction_{event}" for event in ends]
        for line in said:
            assert {"time", "level", "event", "message", "request_id", "logger", "pid"} <= line.keys()
            assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_what_is_not_http_has_an_id_too_and_not_that_of_an_earlier_request(verbose):
    service = verbose.service
    for _ in range(40):
        service.get("/stations", X_Request_ID="earlier")
    with raw.connect(service.port) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head = raw.answer(connection).partition(b"\r\n\r\n")[0].decode()
    (line,) = [line for line in head.splitlines() if line.startswith("X-Request-ID: ")]
    wait_until(lambda: line.partition(" ")[2] in service.said(), "the warning has it")


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_lines_below_the_level_are_left_out(running, level):
    started = running(LOG_LEVEL=level)
    key = started.post("/transactions", {"station_id": 1}, Prefer="wait=20").json["id"]
    started.get("/nothing")
    assert started.stop() == 0
    assert key not in started.said()
    assert "POST /transactions" not in started.said()
    assert (" INFO " in started.said()) == (level == "INFO")
