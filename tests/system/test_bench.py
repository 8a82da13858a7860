"""The benchmark measures every goal, and leaves nothing PENDING. A short soak loses nothing."""

import json
import os
import subprocess
import sys

from programs import ROOT


def bench(*command: str, status: int = 0) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": ".:tests/support"}
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == status, run.stderr
    return run


def test_the_quick_bench_measures_everything_and_leaves_nothing_pending():
    run = bench("tests/bench/run.py", "--quick")
    found = json.loads((ROOT / "var/bench-quick.json").read_text())
    assert found["pending"] == 0
    assert all(goal["name"] in run.stdout for goal in found["goals"])
    assert {"1 client", "8 clients", "32 clients", "16 clients that read"} <= found["phases"].keys()
    for name in (*found["phases"], *found["growth ms"]["10000"]):
        assert name in run.stdout
    met = {goal["name"]: goal["met"] for goal in found["goals"]}
    assert met["verdicts for 50 that wait"]
    assert met["of 50 that follow get it"]


def test_another_release_that_is_not_in_the_history_is_named_in_a_sentence():
    run = bench("tests/bench/run.py", "--quick", "--against", "no-such-commit", status=1)
    assert "AGAINST=no-such-commit: the history here has no such commit" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_short_soak_loses_nothing_and_deletes_what_is_old():
    run = bench("tests/bench/soak.py", "--posts", "2000")
    found = json.loads((ROOT / "var/soak-quick.json").read_text())
    assert (found["accepted"], found["lost"]) == (2000, [])
    *_, end = found["looks"].values()
    assert end["transactions in it"] < 1500, "old ones are deleted"
    assert all(name in run.stdout for name in end)
