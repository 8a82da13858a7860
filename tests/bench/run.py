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
from crowds import Sizes, crowds
from growth import deleting, grow
from programs import ROOT
from progress import step
from stack import Stack, end_on_signals, memory
from traffic import POST_AND_WAIT, Phase, measure, middle

VAR = ROOT / "var"
ROUNDS, STARTS = 4, 3
ROWS, REPEATS = (1_000, 100_000, 1_000_000), 15  # of growth
PHASES = (
    Phase("1 client", 2.5, 1),
    Phase("8 clients", 2.5, 8),
    Phase("32 clients", 2.5),
    Phase(report.READING, 1, 16, post=b""),
    Phase("1 client, Prefer: wait", 1.5, 1, post=POST_AND_WAIT),
    Phase("500 posts a second", 2.5, rate=500),
)
DELAY = 9  # seconds that the equipment takes while clients wait
SMALL = Sizes(50, 100, 20, (1, 20, 50), 2)


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
    rounds, speed, sizes, delay = (1, 10, SMALL, 0.5) if quick else (ROUNDS, 1, Sizes(), DELAY)
    found, roots = {"against": ""}, {"": ROOT}
    with contextlib.ExitStack() as ends:
        if against:
            step(f"setting up {against}")
            found["against"], root = ends.enter_context(checkout(against, folder / "against"))
            roots[f", {found['against']}"] = root
        compile_all(ROOT)
        stacks = {name: Stack(folder / f"main{name}", ends, root) for name, root in roots.items()}
        step("starting")
        starts = range(1 if quick else STARTS)
        found["starts"] = [[stack.restart() for stack in stacks.values()] for _ in starts]
        found["rounds"] = under_traffic(stacks, rounds, speed)
        found["phases"] = middle(found["rounds"])
        found["pending"] = stacks[""].pending()
        found["equipment MB"] = memory(stacks[""].pids["equipment"], "VmHWM")
    found["crowds"] = crowds(folder, sizes, delay)
    rows = (1_000, 10_000) if quick else ROWS
    found["growth ms"] = grow(folder, rows, 1 if quick else REPEATS)
    found["deleting ms"] = deleting(folder / f"{rows[-1]}", speed)
    found["others"] = median(phase["others"] for one in found["rounds"] for phase in one.values())
    step("done")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of it, to see whether it works")
    parser.add_argument(
        "--against", default="", metavar="COMMIT", help="another release to run in turns with"
    )
    options = parser.parse_args()
    end_on_signals()
    # Use var/, like `make run`: /tmp may be in memory, where writing costs nothing.
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=VAR) as name:
        found = bench(Path(name), options.against, options.quick)
    goals = report.goals(found)
    print(report.text(found, goals))
    found["goals"] = [goal._asdict() | {"met": goal.met} for goal in goals]
    (VAR / ("bench-quick.json" if options.quick else "bench.json")).write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    )
    sys.exit(1 if found["pending"] else 0)


if __name__ == "__main__":
    main()
