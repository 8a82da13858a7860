"""The log and the metrics of running programs."""

import json
import re

from programs import wait_until


def test_the_service_logs_nothing_but_json_lines_if_told_so(service):
    started = service(LOG_FORMAT="json", LOG_LEVEL="DEBUG")
    started.get("/stations?x=%22%0a%1b")
    wait_until(lambda: "/stations?" in started.said(), "the request is logged")
    started.stop()
    said = [json.loads(line) for line in started.said().splitlines()]
    assert len(said) > 5
    assert {"gunicorn", "gunicorn.access", "mqtt_listener"} <= {line["logger"] for line in said}


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
    key = started.post("/transactions", {"station_id": 1}, Prefer="wait=10").json["id"]
    started.get(f"/transactions/{key}")

    def events() -> list[str]:
        complete, _, _ = started.said().rpartition("\n")
        lines = [json.loads(line) for line in complete.splitlines()]
        return [line["event"] for line in lines if line.get("fields", {}).get("transaction") == key]

    wanted = ["is stored", "is asked", "is answered", "is "]
    wait_until(lambda: len(events()) >= 4, "its four events are logged")
    for event, words in zip(events(), wanted, strict=False):
        assert words in event
    wait_until(lambda: key in verbose.output.read_text(), "the equipment's line")
    wait_until(
        lambda: f"GET /transactions/{key}" in started.said(),
        "the line of the request, which follows its answer",
    )
    started.stop()
    started.log.unlink()
    started.environment |= {"LOG_LEVEL": "INFO"}
    started.start()
    wait_until(started.ready, "it is ready")
    key = started.post("/transactions", {"station_id": 1}, Prefer="wait=10").json["id"]
    assert key not in started.said()
    assert "POST /transactions" not in started.said()
