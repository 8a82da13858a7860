"""A real Prometheus with the project's rules, and its answers."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from programs import ROOT, HttpServer, free_port, wait_until

PATH = f"{ROOT}/.venv/prometheus/usr/bin:{os.environ['PATH']}"
RULES = ROOT / "deploy/alerts.yml"


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
