"""The metrics and the alerts, as a real Prometheus sees them."""

import re

import pytest

from programs import ROOT, wait_until
from prometheus import RULES, Prometheus, promtool

CASES = "tests/system/alerts_test.yml"
NAMES = re.findall(r"- alert: (\w+)", RULES.read_text())
SELECTOR = re.compile(r"\b(?:up|(?:energy2go|http|process)_\w+)\b(?:\{[^}]*\})?")


@pytest.fixture
def prometheus(tmp_path, programs):
    """A function that starts Prometheus for this service, with this token."""

    def start(service, token: str = "") -> Prometheus:
        programs.append(Prometheus(tmp_path, [service.port], token))
        return programs[-1].start()

    return start


def health(prometheus: Prometheus) -> tuple[str, str]:
    """Whether it can read the metrics, and if not, why."""
    for target in prometheus.api("targets")["activeTargets"]:
        return target["health"], target["lastError"]
    return "unknown", ""


def test_the_rules_fire_and_stay_silent_as_their_cases_say():
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stderr + done.stdout


def test_each_rule_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = (ROOT / CASES).read_text()
    for name in NAMES:
        found = re.findall(rf"alertname: {name}\n +exp_alerts:( \[\])?", cases)
        assert "" in found, f"{name} never fires"
        assert " []" in found, f"{name} is never silent"


def test_names_and_units_are_as_promtool_wants_them(running):
    service = running()
    service.post("/transactions", {"station_id": 1}, Prefer="wait=10")
    done = promtool("check", "metrics", given=service.get("/metrics").body)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")


def test_every_expression_finds_its_series_in_a_prometheus_that_read_the_service(running, prometheus):
    service = running()
    for _ in range(20):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=10")
    service.get("/stations/99")
    watching = prometheus(service)
    wait_until(lambda: health(watching) == ("up", ""), "it reads the metrics")
    wait_until(lambda: watching.query("count_over_time(energy2go_ready[1m]) > 2"), "it has read thrice")
    wait_until(lambda: watching.firing() == set(), "nothing fires")
    (group,) = watching.api("rules")["groups"]
    wait_until(lambda: watching.api("rules")["groups"][0]["evaluationTime"], "it evaluates the rules")
    assert [rule["name"] for rule in group["rules"]] == NAMES
    for rule in watching.api("rules")["groups"][0]["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        selectors = SELECTOR.findall(rule["query"])
        assert selectors, rule["name"]
        for selector in selectors:
            # There are no 5xx here. With another status the same labels must find something.
            assert watching.query(selector.replace('"5.."', '"4.."')), f"{rule['name']}: {selector}"
    rate = 'sum(rate(http_requests_total{status=~"4..", route="/stations/<id>"}[1m]))'
    assert watching.query(rate)
    assert watching.query("histogram_quantile(0.9, rate(http_request_duration_seconds_bucket[1m])) >= 0")
    assert watching.query("process_resident_memory_bytes > 1e6")
    assert watching.query('energy2go_build_info{version!=""} == 1')


def test_what_breaks_fires_and_what_is_mended_does_not(running, prometheus, programs, broker):
    service = running()
    equipment = next(program for program in programs if program.name == "validator")
    watching = prometheus(service)
    wait_until(lambda: watching.query("energy2go_equipment_online == 1"), "it has seen the equipment")
    absent = {("EquipmentOffline", ""), ("NotReady", "equipment")}
    equipment.stop()
    wait_until(lambda: watching.firing() == absent, "the equipment is offline")
    equipment.start()
    wait_until(lambda: watching.firing() == set(), "the equipment is back")
    broker.stop()
    wait_until(lambda: ("NotReady", "broker") in watching.firing(), "the broker is away")
    service.stop()
    wait_until(lambda: watching.firing() == {("Down", "")}, "the service is down")
    assert "connection refused" in health(watching)[1]


def test_with_the_token_it_reads_and_with_a_wrong_one_it_says_401(service, prometheus, tmp_path):
    started = service(API_TOKEN="right")
    watching = prometheus(started, "wrong")
    wait_until(lambda: health(watching)[0] == "down", "it cannot read the metrics")
    assert "401" in health(watching)[1]
    wait_until(lambda: ("Down", "") in watching.firing(), "it says that the service is down")
    (tmp_path / "prometheus/token").write_text("right")  # it reads the file anew each time
    wait_until(lambda: health(watching) == ("up", ""), "it reads the metrics")
    wait_until(lambda: ("Down", "") not in watching.firing(), "the service is no longer down")


def test_without_the_database_the_metrics_still_come(postgres, service, prometheus):
    url = postgres.fresh()
    started = service(DATABASE_URL=url)
    assert b"energy2go_pending_transactions 0.0" in started.get("/metrics").body
    name = url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        away = b'energy2go_ready{part="database"} 0.0'
        wait_until(lambda: away in started.get("/metrics").body, "it says that the database is away")
        assert b"energy2go_pending_transactions" not in started.get("/metrics").body
    finally:
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    here = b'energy2go_ready{part="database"} 1.0'
    wait_until(lambda: here in started.get("/metrics").body, "the database is back")
