"""The metrics and the alerts, as a real Prometheus sees them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import yaml

from installation import Installation
from programs import ROOT, HttpServer, free_port, wait_until

PATH = f"{ROOT}/.venv/prometheus/usr/bin:{os.environ['PATH']}"
RULES = ROOT / "deploy/alerts.yml"
CASES = yaml.safe_load((ROOT / "tests/system/alerts.yml").read_text())
(GROUP,) = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"]}
SELECTOR = re.compile(r"\b(?:up|(?:energy2go|http|process)_\w+)\b(?:\{[^}]*\})?")


def promtool(*arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess:
    """Run promtool, and return what it said."""
    command = [shutil.which("promtool", path=PATH), *arguments]
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, check=False, timeout=60)


class Prometheus(HttpServer):
    """It reads the metrics of these ports every second, and alerts as soon as a condition is met."""

    def __init__(self, folder: Path, ports: list[int], token: str = ""):
        port, folder = free_port(), folder / "prometheus"
        folder.mkdir()
        (folder / "token").write_text(token)
        targets = json.dumps([f"127.0.0.1:{each}" for each in ports])
        text = (ROOT / "deploy/prometheus.yml").read_text()
        for found, wanted in (
            (r"interval: 15s", "interval: 1s"),
            (r"/tmp/token", str(folder / "token")),
            ("alertmanager:9093", f"127.0.0.1:{free_port()}"),
            (r"dns_sd_configs: .*", f"static_configs: [{{targets: {targets}}}]"),
        ):
            text, count = re.subn(found, wanted, text)
            assert count, found
        (folder / "prometheus.yml").write_text(text)
        rules = re.sub(r"^( +for:) \d+m$", r"\1 0s", RULES.read_text(), flags=re.MULTILINE)
        (folder / "alerts.yml").write_text(rules)
        command = [
            str(shutil.which("prometheus", path=PATH)),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        super().__init__("prometheus", command, folder, {}, port)

    def start(self):
        super().start()
        wait_until(lambda: self.get("/-/ready").status == 200, "Prometheus is ready")
        return self

    def api(self, path: str) -> dict | list:
        """What its API answers."""
        answer = self.get(f"/api/v1/{path}")
        assert answer.status == 200, answer.body
        return answer.json["data"]

    def query(self, expression: str) -> list:
        """The series that an expression has now."""
        return self.api(f"query?query={quote(expression)}")["result"]

    def firing(self) -> set[tuple[str, str]]:
        """The alerts that fire now: the name, and the part that is not ready."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("part", ""))
            for alert in self.api("alerts")["alerts"]
            if alert["state"] == "firing"
        }


def with_job(series: str) -> str:
    """A series of our job, unless it names another."""
    name, _, labels = series.rstrip("}").partition("{")
    return series if "job=" in labels else f'{name}{{job="energy2go", {labels}}}'


def case_for_promtool(case: dict) -> dict:
    """A case of alerts.yml as `promtool test rules` reads it."""
    rule = ALERTS[case["alert"]]
    labels = {"job": "energy2go"} | rule["labels"] | case.get("labels", {})
    texts = {"summary": case["summary"], "description": rule["annotations"]["description"]}
    fires = {"exp_labels": {k: v for k, v in labels.items() if v}, "exp_annotations": texts}
    times = {case["fires"]: [fires]} | {time: [] for time in case.get("quiet", ())}
    return {
        "interval": "15s",
        "input_series": [{"series": with_job(name), "values": v} for name, v in case["series"].items()],
        "alert_rule_test": [
            {"alertname": case["alert"], "eval_time": time, "exp_alerts": alerts}
            for time, alerts in times.items()
        ],
    }


def test_each_alert_fires_and_stays_silent_as_its_cases_say(tmp_path):
    assert {case["alert"] for case in CASES if "quiet" in case} == ALERTS.keys()
    tests = {"rule_files": [str(RULES)], "evaluation_interval": "15s"}
    file = tmp_path / "cases.yml"
    file.write_text(json.dumps(tests | {"tests": [case_for_promtool(case) for case in CASES]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stderr + done.stdout


def health(prometheus: Prometheus) -> tuple[str, str]:
    """Whether it can read the metrics, and if not, why."""
    for target in prometheus.api("targets")["activeTargets"]:
        return target["health"], target["lastError"]
    return "unknown", ""


def test_prometheus_reads_the_metrics_and_fires_for_what_breaks(tmp_path, programs):
    installed = Installation(tmp_path, programs, API_TOKEN="right")
    for program in (installed.broker, installed.equipment, installed.service):
        program.start()
    installed.ready()
    service, known = installed.service, {"Authorization": "Bearer right"}
    watching = Prometheus(tmp_path, [service.port], "wrong")
    programs.append(watching.start())
    wait_until(lambda: "401" in health(watching)[1], "the token is wrong")
    wait_until(lambda: ("Down", "") in watching.firing(), "it says that the service is down")
    (tmp_path / "prometheus/token").write_text("right")  # it reads the file anew each time
    service.post("/stations", {"description": "Teste"}, **known)
    for _ in range(20):
        service.post("/transactions", {"station_id": 1}, Prefer="wait=10", **known)
    service.get("/stations/99", **known)
    wait_until(lambda: health(watching) == ("up", ""), "it reads the metrics")
    wait_until(lambda: watching.query("count_over_time(energy2go_ready[1m]) > 2"), "it has read thrice")
    wait_until(lambda: watching.firing() == set(), "nothing fires")

    # Names, units and expressions.
    done = promtool("check", "metrics", given=service.get("/metrics", **known).body)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")
    wait_until(lambda: watching.api("rules")["groups"][0]["evaluationTime"], "it evaluates the rules")
    for rule in watching.api("rules")["groups"][0]["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        selectors = SELECTOR.findall(rule["query"])
        assert selectors, rule["name"]
        for selector in selectors:
            # There are no 5xx here. With another status the same labels must find something.
            assert watching.query(selector.replace('"5.."', '"4.."')), f"{rule['name']}: {selector}"
    for query in (
        'rate(http_requests_total{status=~"4..", route="/stations/<id>"}[1m])',
        "histogram_quantile(0.9, rate(http_request_duration_seconds_bucket[1m])) >= 0",
        "process_resident_memory_bytes > 1e6",
        'energy2go_build_info{version!=""} == 1',
    ):
        assert watching.query(query), query

    # What breaks and is mended.
    absent = {("EquipmentOffline", ""), ("NotReady", "equipment")}
    installed.equipment.stop()
    wait_until(lambda: watching.firing() == absent, "the equipment is offline")
    installed.equipment.start()
    wait_until(lambda: watching.firing() == set(), "the equipment is back")
    installed.broker.stop()
    wait_until(lambda: ("NotReady", "broker") in watching.firing(), "the broker is away")
    service.stop()
    wait_until(lambda: watching.firing() == {("Down", "")}, "the service is down")
    assert "connection refused" in health(watching)[1]
