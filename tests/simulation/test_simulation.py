"""New worlds, kept failures, and deliberate faults: the rules hold, and they find what is broken."""

import json
import os
import subprocess
import sys
import time

import pytest

from deliberate import FAULTS, planted
from programs import ROOT
from simulate import FOUND, draw, name, runner, search
from trial import FULL

SECONDS = 3 if FULL else 30  # of new worlds; `make test-faults` is for the deliberate faults
PATIENCE = 60  # seconds of processor time until a deliberate fault must be found


@pytest.fixture(scope="module")
def worlds():
    with runner() as worlds:
        yield worlds


def test_new_worlds_keep_the_rules(worlds):
    seed = time.time_ns()
    events, broken = search(worlds, seed, 1e9, SECONDS)
    assert worlds.steps > 0
    assert not broken, f"make simulate SEED={seed}\n{json.dumps(events)}"


@pytest.mark.parametrize("file", sorted(FOUND.glob("*.json")), ids=lambda file: file.stem)
def test_a_fault_that_was_found_stays_mended(worlds, file):
    assert not worlds.violation(json.loads(file.read_text()))


def test_the_same_events_give_the_same_run(tmp_path, worlds):
    file = tmp_path / "events.json"
    file.write_text(json.dumps(draw(7)))
    worlds.violation(draw(7))
    for seed in "12":
        command = [sys.executable, "tests/simulation/simulate.py", "--events", file]
        path = {"PYTHONPATH": ".:tests/support:tests/simulation", "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=os.environ | path, cwd=ROOT, capture_output=True, text=True)
        assert f"trace {worlds.world.trace:08x}" in done.stdout, done.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_found(worlds, fault, capsys):
    """With the events that find it soonest; if the product takes other steps now, with new ones."""
    rule, events = FAULTS[fault]["rule"], FAULTS[fault]["events"]
    assert not worlds.violation(events), "the product breaks a rule without the fault, too"
    with planted(fault):
        kept, found, before = name(worlds.violation(events)) == rule, "", worlds.steps
        if FULL or not kept:
            _, found = search(worlds, time.time_ns(), 1e9, PATIENCE, time.process_time, 0)
            after = f"after {worlds.steps - before} steps" if found else f"not in {PATIENCE} s"
            with capsys.disabled():
                print(f"\n{fault}: found {after}{', but with the kept events' * (kept and not found)}")
        assert kept or found, f"no rule finds that {fault}"
