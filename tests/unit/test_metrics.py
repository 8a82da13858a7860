"""Known traffic, and the numbers that Prometheus reads."""

import contextlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from calls import UNKNOWN, at_once, new_station, new_transaction, send, service, settle
from mqtt_listener import VERDICTS
from postgres import BOTH
from programs import ROOT, wait_until


def scrape(api) -> dict[str, float]:
    """The value of each sample, by name and labels."""
    text = api.get("/metrics", status=200).text
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_scrapes_at_the_same_time_have_all_gauges(api):
    for texts in at_once(16, lambda: [api.get("/metrics").text for _ in range(20)]):
        for text in texts:
            assert "\nenergy2go_pending_transactions " in text
            assert "\nenergy2go_database_bytes " in text


EXPECTED = {
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
    "energy2go_batch_jobs_sum": 6 + 3 + 3,
}


@pytest.mark.parametrize("api", BOTH, indirect=True)
def test_known_traffic_gives_these_numbers(api):
    new_station(api)
    before = scrape(api)
    assert before["energy2go_oldest_pending_seconds"] == 0
    keys = [new_transaction(api)["id"] for _ in range(4)]
    new_transaction(api, Idempotency_Key="k")
    new_transaction(api, Idempotency_Key="k")
    for key, status in ((keys[0], "COMPLETED"), (keys[1], "COMPLETED"), (keys[2], "ERROR")):
        settle(key, status)
    settle(keys[0], "COMPLETED")
    settle(keys[0], "ERROR")
    settle(UNKNOWN, "ERROR")
    done = threading.Event()
    service().listener.receive(VERDICTS, b"garbage", False, done.set)
    assert done.wait(60)

    def found() -> dict[str, float]:
        after = scrape(api)
        return {name: after[name] - before.get(name, 0) for name in EXPECTED}

    with contextlib.suppress(AssertionError):
        wait_until(lambda: found() == EXPECTED, "the ledger has done its work")
    assert found() == EXPECTED
    now = scrape(api)
    names = "queue_jobs", "waiters", "broker_connected", "pending_transactions"
    assert [now[f"energy2go_{name}"] for name in names] == [0, 0, 0, 2]
    assert now["energy2go_oldest_pending_seconds"] > 0


def answered(before: dict, after: dict) -> dict[str, float]:
    """By its labels, how many requests of each kind were answered between two scrapes."""
    names = [name for name in after if name.startswith("http_requests_total")]
    counts = {name.removeprefix("http_requests_total"): after[name] - before.get(name, 0) for name in names}
    return {name: count for name, count in counts.items() if count and "/metrics" not in name}


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_requests_are_counted_by_the_rule_of_their_route(api, monkeypatch):
    new_station(api)
    before = scrape(api)
    for path in ("/stations/1", "/stations/1/", "/stations/99", "/stations/98", "/nowhere", "/7"):
        send(api, "GET", path)
    send(api, "POST", "/transactions", {"station_id": "one"})
    send(api, "HEAD", "/stations")
    for method in ("X7", "X8"):
        send(api, method, "/stations")
    monkeypatch.setattr("models.get_station", None)
    assert send(api, "GET", "/stations/1").status_int == 500
    after = scrape(api)
    assert answered(before, after) == {
        "[GET][/stations/<id>][200]": 2,
        "[GET][/stations/<id>][404]": 2,
        "[GET][/stations/<id>][500]": 1,
        "[POST][/transactions][422]": 1,
        "[HEAD][/stations][200]": 1,
        "[GET][unmatched][404]": 2,
        "[other][unmatched][405]": 2,
    }
    name = "http_request_duration_seconds_count[GET][/stations/<id>]"
    assert after[name] - before.get(name, 0) == 5
    assert after["http_request_duration_seconds_sum[GET][/stations/<id>]"] > 0


def test_a_request_that_waits_is_in_progress_and_waits(api):
    new_station(api)
    key = new_transaction(api)["id"]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(send, api, "GET", f"/transactions/{key}", Prefer="wait=20")
        wait_until(lambda: scrape(api)["energy2go_waiters"] == 1, "it waits")
        assert scrape(api)["http_requests_in_progress"] == 2  # and this one
        settle(key)
        assert waiting.result(60).json["status"] == "COMPLETED"
    assert scrape(api)["http_requests_in_progress"] == 1


def test_every_metric_and_every_alert_is_on_the_page_about_operations(api):
    page = (ROOT / "docs/operations.md").read_text()
    send(api, "GET", "/stations")
    families = text_string_to_metric_families(api.get("/metrics").text)
    counters = {family.name + "_total" * (family.type == "counter") for family in families}
    ours = {name for name in counters if not name.startswith("process_")}
    assert len(ours) > 15
    assert not [name for name in ours if f"`{name}`" not in page]
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy/alerts.yml").read_text())
    assert re.findall(r"^\| ([A-Z]\w+) \|", page, re.MULTILINE) == alerts
