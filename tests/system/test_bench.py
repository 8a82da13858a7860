"""The benchmark runs every phase and operation, and leaves nothing PENDING."""

import json
import os
import subprocess
import sys

from programs import ROOT


def test_the_quick_bench_measures_everything_and_leaves_nothing_pending():
    environment = os.environ | {"PYTHONPATH": ".:tests/support"}
    command = [sys.executable, "tests/bench/run.py", "--quick"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads((ROOT / "var/bench-quick.json").read_text())
    assert found["pending"] == 0
    assert all(goal["name"] in run.stdout for goal in found["goals"])
    for name, phase in found["phases"].items():
        assert name in run.stdout
        assert phase["posts"] > 0
    assert found["deleting"]["round ms"]["max"] >= found["deleting"]["round ms"]["p50"] > 0
    assert "round of deletion with its commit" in run.stdout
    assert {"POST", "GET by id", "claim", "settle"} <= found["growth µs"]["10000"].keys()
