"""`make bench`: measure the service, alone or in turns with another release, and print the goals."""

import argparse
import contextlib
from pathlib import Path
from statistics import median

import report
from against import checkout, compile_all
from crowds import crowds
from million import million
from programs import ROOT
from stack import Stack, keep, step, workplace
from traffic import POST_AND_WAIT, Phase, measure, middle

ROUNDS, STARTS = 4, 3
PHASES = (
    Phase("1 client", 2.5, 1),
    Phase("8 clients", 2.5, 8),
    Phase("32 clients", 2.5, 32),
    Phase(report.READING, 1, 16, post=b""),
    Phase("1 client, Prefer: wait", 1.5, 1, post=POST_AND_WAIT),
)


def under_traffic(stacks: dict[str, Stack]) -> list[dict]:
    """Run every phase in every round, those of PAIRS with each release in turns."""
    found, names = [], list(stacks)
    for number in range(ROUNDS + 1):
        step(f"traffic, round {number} of {ROUNDS}" if number else "warming up")
        found.append({})
        order = names if number % 2 else names[::-1]
        for phase in PHASES:
            for name in order if phase.name in report.PAIRS else [""]:
                shorter = phase._replace(seconds=phase.seconds / (1 if number else 10))
                found[-1][phase.name + name] = measure(shorter, stacks[name])
    return found[1:]


def bench(folder: Path, against: str) -> dict:
    """Everything that was measured."""
    found, roots = {"against": ""}, {"": ROOT}
    with contextlib.ExitStack() as ends:
        if against:
            step(f"setting up {against}")
            found["against"], root = ends.enter_context(checkout(against, folder / "against"))
            roots[f", {found['against']}"] = root
        compile_all(ROOT)
        stacks = {name: Stack(folder / f"main{name}", ends, root) for name, root in roots.items()}
        step("starting")
        found["starts"] = [[stack.restart() for stack in stacks.values()] for _ in range(STARTS)]
        found["rounds"] = under_traffic(stacks)
        found["phases"] = middle(found["rounds"])
    found["crowds"] = crowds(folder)
    found["million"] = million(folder / "million")
    found["others"] = median(phase["others"] for one in found["rounds"] for phase in one.values())
    step("done")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="", metavar="COMMIT", help="a release to run in turns with")
    options = parser.parse_args()
    with workplace("bench") as folder:
        found = bench(folder, options.against)
    goals = report.goals(found)
    print(report.text(found, goals))
    keep("bench", found | {"goals": [goal._asdict() | {"met": goal.met} for goal in goals]})


if __name__ == "__main__":
    main()
