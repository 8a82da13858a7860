"""`make soak`: send 200,000 transactions at a fixed rate and record the memory of each process."""

import argparse
import contextlib
import itertools
import json
import tempfile
from pathlib import Path

from clients import drive
from progress import Progress
from report import Goal, goal_table, number, table
from stack import Stack, end_on_signals, memory
from traffic import POST, WINDOW

VAR = Path(__file__).resolve().parent.parent.parent / "var"
PARTS = 20
FLAT = 1.02  # allowed memory at the end, relative to half-way


def soak(folder: Path, posts: int, rate: float) -> list[dict[str, float]]:
    """The RSS of every process in MB, before the first part and after each part when nothing is PENDING."""
    part = posts // PARTS
    progress = Progress(posts / rate)
    with contextlib.ExitStack() as ends:
        stack = Stack(folder / "soak", ends)
        held = [{name: memory(pid, "VmRSS") for name, pid in stack.pids.items()}]
        for done in range(0, PARTS * part, part):
            progress.step(f"{done:,} of {posts:,} transactions, {rate:g} a second", part / rate)
            sample = drive(stack.port, itertools.repeat(POST), WINDOW, part / rate + 1, rate, most=part)
            assert len(sample.done) == part, f"{len(sample.done)} of {part} posts were sent"
            stack.drain(60)
            held.append({name: memory(pid, "VmRSS") for name, pid in stack.pids.items()})
        verdicts = stack.query(
            "SELECT count(*) FROM \"transaction\" WHERE status IN ('COMPLETED', 'ERROR')"
        )[0][0]
        assert verdicts == PARTS * part, f"{verdicts} verdicts for {PARTS * part} transactions"
    progress.end()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=200_000)
    parser.add_argument("--rate", type=float, default=400, help="posts a second")
    options = parser.parse_args()
    end_on_signals()
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=VAR) as name:
        held = soak(Path(name), options.posts, options.rate)
    part = options.posts // PARTS
    half = held[PARTS // 2]
    goals = [Goal(f"RSS of the {name}, end ÷ half-way", held[-1][name] / half[name], FLAT) for name in half]
    print(goal_table(goals))
    rows = ((f"{index * part:,}", *(number(one[name]) for name in half)) for index, one in enumerate(held))
    print(table(("RSS in MB after … transactions", *half), rows))
    (VAR / "soak.json").write_text(
        json.dumps({"rate": options.rate, "part": part, "rss MB": held}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
