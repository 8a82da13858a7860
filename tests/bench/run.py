"""`make bench`: measure the service, alone or in turns with another release, and print the goals."""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import report
from against import checkout, compile_all
from crowds import crowds
from installation import resident
from million import million
from programs import ROOT
from stack import Stack, end_on_signals, step
from traffic import POST_AND_WAIT, Phase, measure, middle

VAR = ROOT / "var"
PHASES = (
    Phase("1 client", 2.5, 1),
    Phase("8 clients", 2.5, 8),
    Phase("32 clients", 2.5, 32),
    Phase(report.READING, 1, 16, post=b""),
    Phase("1 client, Prefer: wait", 1.5, 1, post=POST_AND_WAIT),
)


def under_traffic(stacks: dict[str, Stack], rounds: int, speed: float) -> list[dict]:
    """Run every phase in every round, those of PAIRS with each release in turns."""
    found, names = [], list(stacks)
    for number in range(rounds + 1):
        step(f"traffic, round {number} of {rounds}" if number else "warming up")
        found.append({})
        order = names if number % 2 else names[::-1]
        for phase in PHASES:
            for name in order if phase.name in report.PAIRS else [""]:
                shorter = phase._replace(seconds=phase.seconds / (speed if number else 10))
                found[-1][phase.name + name] = measure(shorter, stacks[name])
    return found[1:]


def bench(folder: Path, against: str, quick: bool) -> dict:
    """Everything that was measured."""
    found, roots, rounds = {"against": ""}, {"": ROOT}, 1 if quick else 4
    with contextlib.ExitStack() as ends:
        if against:
            step(f"setting up {against}")
            found["against"], root = ends.enter_context(checkout(against, folder / "against"))
            roots[f", {found['against']}"] = root
        compile_all(ROOT)
        stacks = {name: Stack(folder / f"main{name}", ends, root) for name, root in roots.items()}
        step("starting")
        starts = range(1 if quick else 3)
        found["starts"] = [[stack.restart() for stack in stacks.values()] for _ in starts]
        found["rounds"] = under_traffic(stacks, rounds, 10 if quick else 1)
        found["phases"] = middle(found["rounds"])
        found["pending"] = stacks[""].status("PENDING")
        found["equipment MB"] = resident(stacks[""].equipment.pid, "VmHWM")
    if quick:
        found["crowds"] = crowds(folder, (50, 100), (1, 20, 50), delay=0.5, events=2)
        found["million"] = million(folder / "million", 10_000, 0.1)
    else:
        found["crowds"] = crowds(folder, (1000, 8000), (1, 1000, 5000), delay=9, events=10)
        found["million"] = million(folder / "million", 1_000_000, 1)
    found["others"] = median(phase["others"] for one in found["rounds"] for phase in one.values())
    step("done")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of it, to see whether it works")
    parser.add_argument("--against", default="", metavar="COMMIT", help="a release to run in turns with")
    options = parser.parse_args()
    end_on_signals()
    # Use var/, like `make run`: /tmp may be in memory, where writing costs nothing.
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=VAR) as name:
        found = bench(Path(name), options.against, options.quick)
    goals = report.goals(found)
    print(report.text(found, goals))
    found["goals"] = [goal._asdict() | {"met": goal.met} for goal in goals]
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (VAR / f"bench{'-quick' * options.quick}.json").write_text(text + "\n")
    sys.exit(1 if found["pending"] else 0)


if __name__ == "__main__":
    main()
