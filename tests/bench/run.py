"""`make bench`: compare the service with a bare route in one run, and print which goals it meets."""

import argparse
import contextlib
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import growth
import report
import waiting
from progress import Progress
from stack import Bare, Fixed, Stack, end_on_signals
from traffic import POST_AND_WAIT, Phase, measure, middle, spread

VAR = Path(__file__).resolve().parent.parent.parent / "var"
ROUNDS = 4
ROWS = (1_000, 100_000, 1_000_000)
QUERIES, REQUESTS = 15, 100  # runs of each operation per round
PHASES = (
    Phase("generator alone, 32 clients", "fixed", 0.7),
    Phase("bare, 1 client", "bare", 1, 1),
    Phase("1 client", "service", 2.5, 1),
    Phase("1 client, Prefer: wait", "service", 1.5, 1, post=POST_AND_WAIT),
    Phase("8 clients", "service", 2.5, 8),
    Phase("bare, 32 clients", "bare", 2),
    Phase("bare on all processors, 32 clients", "spread", 1.5),
    Phase("nothing stored or asked, 32 clients", "hollow", 1.5),
    Phase("32 clients", "service", 3),
    Phase("100 posts a second", "service", 2.5, rate=100),
    Phase("500 posts a second", "service", 2.5, rate=500),
)
DELETING = Phase("100 posts a second", "service", 5, rate=100)
DELETIONS = 300  # rounds of deletion
FILL = 25e-6  # seconds to insert one row


def under_traffic(folder: Path, rounds: int, speed: float, progress: Progress) -> dict:
    """Run every phase in every round."""
    found = []
    with contextlib.ExitStack() as ends:
        servers = {name: Bare(name, folder, ends) for name in ("bare", "spread", "hollow")}
        servers |= {"fixed": Fixed(folder, ends), "service": Stack(folder / "main", ends)}
        for server in ("bare", "spread", "hollow", "service"):
            progress.step(f"warming up {server}", 1)
            measure(Phase("", server, 1), servers[server])
        for number in range(rounds):
            found.append({})
            for phase in PHASES:
                progress.step(f"{phase.name}, round {number + 1} of {rounds}", phase.seconds / speed)
                found[-1][phase.name] = measure(
                    phase._replace(seconds=phase.seconds / speed), servers[phase.server]
                )
        return {
            "phases": {phase.name: middle([one[phase.name] for one in found]) for phase in PHASES},
            "peak MB": servers["service"].peak(),
            "pending": servers["service"].pending(),
            "rounds": found,
        }


def deleting(rows: growth.Rows, speed: float, progress: Progress) -> dict:
    """Times of posts while the service deletes old rows, and of each round of deletion; milliseconds."""
    progress.step("deleting old rows under traffic", DELETING.seconds / speed + 2)
    with contextlib.ExitStack() as ends:
        stack = Stack(rows.folder, ends, RETENTION_DAYS="1")
        posts = measure(DELETING._replace(seconds=DELETING.seconds / speed), stack)["post ms"]
    progress.step("deleting old rows", DELETIONS / speed * 0.01)
    return {"post ms": posts, "round ms": spread(rows.deletions(round(DELETIONS / speed)))}


def with_rows(
    folder: Path, sizes: tuple[int, ...], rounds: int, speed: float, progress: Progress
) -> tuple[dict[int, dict], dict]:
    """Run every operation with each number of rows in every round; returns medians in microseconds.

    Then delete rows from the largest database: see `deleting`.
    """
    found = {}
    for rows in sizes:
        progress.step(f"making {rows:,} rows", rows * FILL)
        found[rows] = growth.Rows(folder / f"{rows}", rows)
    for number in range(rounds):
        progress.step(
            f"queries with {sizes[0]:,} to {sizes[-1]:,} rows, round {number + 1} of {rounds}", QUERIES / 5
        )
        for _ in range(QUERIES):
            for one in found.values():
                one.queries()
    with contextlib.ExitStack() as ends:
        progress.step("starting a service for each", 3)
        stacks = {rows: Stack(one.folder, ends) for rows, one in found.items()}
        for number in range(rounds * REQUESTS // 10):
            progress.step(f"requests with {sizes[0]:,} to {sizes[-1]:,} rows, round {number + 1}", 0.6)
            for rows, one in found.items():
                one.requests(stacks[rows], 10)
    medians = {rows: one.medians() for rows, one in found.items()}
    return medians, deleting(found[sizes[-1]], speed, progress)


def sync_time(folder: Path) -> float:
    """The time that the disk needs to store 4 KiB, in microseconds: the median of fdatasync(2)."""
    took = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(4096))
            began = time.perf_counter_ns()
            os.fdatasync(file)
            took.append((time.perf_counter_ns() - began) / 1000)
    return median(took)


def machine(rounds: list[dict], sync: float) -> dict:
    """The machine, and how many processors other programs used during the run."""
    others = median(phase["others"] for one in rounds for phase in one.values())
    versions = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": platform.platform(),
    }
    return {"processors": os.cpu_count(), "others": others, "sync µs": sync} | versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of it, to see whether it works")
    quick = parser.parse_args().quick
    rounds, speed, sizes = (1, 4, (1_000, 10_000)) if quick else (ROUNDS, 1, ROWS)
    end_on_signals()
    traffic = sum(phase.seconds / speed + 0.3 for phase in PHASES)
    requests = QUERIES / 5 + 0.6 * REQUESTS / 10
    traffic_and_rows = rounds * (traffic + requests) + sum(sizes) * FILL
    progress = Progress(4 + 3 + waiting.EXPECTED + 10 / speed + traffic_and_rows)
    # Use var/, like `make run`: /tmp may be in memory, where writing costs nothing.
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=VAR) as name:
        folder = Path(name)
        sync = sync_time(folder)
        found = under_traffic(folder, rounds, speed, progress)
        progress.step("crowds that wait, hang and follow", waiting.EXPECTED)
        found["crowds"] = waiting.crowds(folder)
        found["growth µs"], found["deleting"] = with_rows(folder, sizes, rounds, speed, progress)
    progress.end()
    found["machine"] = machine(found["rounds"], sync)
    goals = report.goals(found)
    print(report.text(found, goals))
    found["goals"] = [goal._asdict() | {"met": goal.met} for goal in goals]
    (VAR / ("bench-quick.json" if quick else "bench.json")).write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    )
    sys.exit(1 if found["pending"] else 0)


if __name__ == "__main__":
    main()
