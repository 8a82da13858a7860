"""The log and the metrics of running programs."""

import json
import re
from datetime import datetime, timedelta

import pytest

import raw
from programs import Service, wait_until


def records(service: Service) -> list[dict]:
    """The complete lines of a log in JSON."""
    return [json.loads(line) for line in service.said().rpartition("\n")[0].splitlines()]


def test_the_service_logs_nothing_but_json_lines_if_told_so(service):
    started = service(LOG_FORMAT="json", LOG_LEVEL="DEBUG")
    started.get("/stations?x=%22%0a%1b")
    wait_until(lambda: "/stations" in started.said(), "the request is logged")
    started.stop()
    said = records(started)
    assert len(said) > 5
    assert {"gunicorn", "kit.api", "mqtt_listener"} <= {line["logger"] for line in said}
    for line in said:
        assert {"time", "level", "event", "message", "request_id", "logger", "pid"} <= line.keys()
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_request_that_failed_gets_one_line_with_its_id(service, log_format):
    started = service(LOG_FORMAT=log_format)
    started.get("/stations", X_Request_ID="fine")
    failed = {"/stations/9?token=sesame": 404, "/stations/x": 422, "/nothing": 404}
    for number, (target, status) in enumerate(failed.items()):
        assert started.get(target, X_Request_ID=f"bad-{number}").status == status
    assert started.post("/transactions", b"{", X_Request_ID="bad-3").status == 400
    assert started.get("/readyz", X_Request_ID="probe").status == 503
    assert started.get("/nothing", X_Request_ID="last").status == 404
    wait_until(lambda: "last" in started.said(), "the line of the last request")
    for number, (target, status) in enumerate([*failed.items(), ("/transactions", 400)]):
        (line,) = (line for line in started.said().splitlines() if f"bad-{number}" in line)
        assert f"{target.partition('?')[0]} from 127.0.0.1: {status} in " in line
        assert "INFO" in line
    assert not re.search("fine|probe|sesame", started.said())


def test_a_flood_of_requests_that_fail_does_not_fill_the_log(service):
    started = service()
    flood = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 999
    flood += b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert raw.talk(started.port, flood, half_close=False).count(b"HTTP/1.1 404") == 1000
    assert started.get("/stations", X_Request_ID="last").status == 200
    times = [line[:19] for line in started.said().splitlines() if "GET /nothing" in line]
    assert times
    assert max(map(times.count, times)) <= 2 * 100  # its seconds need not be those of the limit


def test_the_questions_and_the_connections_are_counted(service, equipment):
    equipment()
    started = service()
    wait_until(
        lambda: started.get("/readyz").json["equipment"] == {"validator": "online"},
        "the equipment is online",
    )
    started.post("/stations", {"description": "Teste"})
    for _ in range(20):
        started.post("/transactions", {"station_id": 1}, Prefer="wait=5")
    text = started.get("/metrics").body.decode()
    assert 'energy2go_questions_total{time="first"} 20.0' in text
    assert 'energy2go_questions_total{time="again"} 0.0' in text
    assert 'energy2go_verdicts_total{kind="settled"} 20.0' in text
    seconds = re.search(r"^energy2go_verdict_seconds_sum (\S+)$", text, re.MULTILINE)
    assert 0 < float(seconds[1]) < 20
    assert "energy2go_verdict_seconds_count 20.0" in text
    assert "energy2go_broker_connected 1.0" in text
    assert 'energy2go_equipment_online{equipment="validator"} 1.0' in text


def test_a_transaction_is_followed_by_its_id_and_the_log_is_silent_otherwise(service, equipment):
    verbose = equipment(VALIDATOR_VERBOSE="1")
    started = service(LOG_LEVEL="DEBUG", LOG_FORMAT="json")
    started.post("/stations", {"description": "Teste"})
    answer = started.post("/transactions", {"station_id": 1}, Prefer="wait=10", X_Request_ID="mine")
    key, status = answer.json["id"], answer.json["status"]
    started.get(f"/transactions/{key}")

    def events() -> list[str]:
        return [line["event"] for line in records(started) if line.get("transaction") == key]

    wanted = ["stored", "asked", "answered", status.lower()]
    wait_until(lambda: len(events()) >= 4, "its four events are logged")
    assert events() == [f"transaction_{event}" for event in wanted]
    wait_until(lambda: key in verbose.output.read_text(), "the equipment's line")
    wait_until(lambda: f"GET /transactions/{key}" in started.said(), "the line of the request")

    def of_request() -> list[str]:
        return [line["event"] for line in records(started) if line["request_id"] == "mine"]

    wait_until(lambda: of_request() == ["transaction_stored", "request"], "both lines of the first request")
    started.stop()
    started.log.unlink()
    started.environment |= {"LOG_LEVEL": "INFO"}
    started.start()
    wait_until(started.ready, "it is ready")
    key = started.post("/transactions", {"station_id": 1}, Prefer="wait=10").json["id"]
    assert key not in started.said()
    assert "POST /transactions" not in started.said()


def test_an_expired_transaction_is_followed_to_its_end(service):
    started = service(LOG_LEVEL="DEBUG", LOG_FORMAT="json", VALIDATION_RETRY="0.1", VALIDATION_TIMEOUT="0.3")
    started.post("/stations", {"description": "Teste"})
    key = started.post("/transactions", {"station_id": 1}, Prefer="wait=10").json["id"]

    def events() -> list[str]:
        return [line["event"] for line in records(started) if line.get("transaction") == key]

    wait_until(lambda: "transaction_expired" in events(), "its end is logged")
    assert events()[:2] == ["transaction_stored", "transaction_asked"]


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_lines_below_the_level_are_left_out(service, level):
    started = service(LOG_LEVEL=level)
    started.get("/nothing")
    assert " INFO " not in started.said()
