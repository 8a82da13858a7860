"""The benchmark runs every phase and operation, and leaves nothing PENDING. A short soak loses nothing."""

import json
import os
import subprocess
import sys

from programs import ROOT


def bench(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": ".:tests/support"}
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run


def test_the_quick_bench_measures_everything_and_leaves_nothing_pending():
    run = bench("tests/bench/run.py", "--quick")
    found = json.loads((ROOT / "var/bench-quick.json").read_text())
    assert found["pending"] == 0
    assert all(goal["name"] in run.stdout for goal in found["goals"])
    for name, phase in found["phases"].items():
        assert name in run.stdout
        assert phase["posts"] > 0
    assert found["deleting"]["round ms"]["max"] >= found["deleting"]["round ms"]["p50"] > 0
    assert "round of deletion with its commit" in run.stdout
    assert {"POST", "GET by id", "claim", "settle"} <= found["growth µs"]["10000"].keys()


def test_a_short_soak_loses_nothing_and_deletes_what_is_old():
    run = bench("tests/bench/soak.py", "--posts", "2000")
    found = json.loads((ROOT / "var/soak-quick.json").read_text())
    assert (found["accepted"], found["lost"]) == (2000, [])
    *_, end = found["looks"].values()
    assert end["transactions in it"] < 1500, "old ones are deleted"
    assert all(name in run.stdout for name in end)
