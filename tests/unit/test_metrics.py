"""Known traffic, and the numbers that Prometheus reads."""

import contextlib
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from calls import new_station, new_transaction, send, service, serving
from mqtt_listener import STATUSES, VERDICTS
from programs import wait_until


@pytest.fixture
def api(tmp_path):
    with serving(tmp_path) as api:
        new_station(api)
        yield api


def scrape(api) -> dict[str, float]:
    """The value of each sample, by name and labels."""
    text = api.get("/metrics", status=200).text
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def receive(payload: bytes, topic: str = VERDICTS) -> None:
    """Hand the listener a message, and wait until it is acknowledged."""
    done = []
    service().listener.receive(topic, payload, False, lambda: done.append(True))
    wait_until(lambda: done, "it was dealt with")


def verdict(key: str, status: str) -> bytes:
    return json.dumps({"transaction_id": key, "status": status}).encode()


def test_known_traffic_gives_these_numbers(api):
    keys = [new_transaction(api)["id"] for _ in range(4)]
    new_transaction(api, Idempotency_Key="k")
    new_transaction(api, Idempotency_Key="k")
    for key, status in ((keys[0], "COMPLETED"), (keys[1], "COMPLETED"), (keys[2], "ERROR")):
        receive(verdict(key, status))
    receive(verdict(keys[0], "COMPLETED"))
    receive(verdict(keys[0], "ERROR"))
    receive(verdict("019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57", "ERROR"))
    receive(b"garbage")
    receive(b"online", f"{STATUSES}validator-1")
    receive(b"offline", f"{STATUSES}validator-2")
    expected = {
        "energy2go_transactions_total[PENDING]": 5,
        "energy2go_transactions_total[COMPLETED]": 2,
        "energy2go_transactions_total[ERROR]": 1,
        "energy2go_transactions_total[EXPIRED]": 0,
        "energy2go_verdicts_total[settled]": 3,
        "energy2go_verdicts_total[late]": 0,
        "energy2go_verdicts_total[duplicate]": 1,
        "energy2go_verdicts_total[contradiction]": 1,
        "energy2go_verdicts_total[unknown]": 1,
        "energy2go_verdicts_total[unreadable]": 1,
        "energy2go_questions_total[first]": 0,
        "energy2go_questions_total[again]": 0,
        "energy2go_verdict_seconds_count": 0,  # none of them was asked about
        "energy2go_batch_jobs_sum": 1 + 6 + 3 + 3 + 1,
        "energy2go_queue_jobs": 0,
        "energy2go_waiters": 0,
        "energy2go_broker_connected": 0,
        "energy2go_equipment_online[validator-1]": 1,
        "energy2go_equipment_online[validator-2]": 0,
    }
    with contextlib.suppress(AssertionError):
        wait_until(lambda: expected.items() <= scrape(api).items(), "the ledger has done its work", 5)
    found = scrape(api)
    assert {name: found[name] for name in expected} == expected
    assert found["energy2go_oldest_pending_seconds"] > 0


def test_without_anything_pending_the_oldest_is_of_no_age(api):
    assert scrape(api)["energy2go_oldest_pending_seconds"] == 0


def test_the_metrics_need_the_token(tmp_path):
    with serving(tmp_path, api_token="secret") as api:
        assert send(api, "GET", "/metrics").status_int == 401
        assert send(api, "GET", "/metrics", Authorization="Bearer secret").status_int == 200
