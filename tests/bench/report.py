"""The report of a run: the goals, as ratios within the run where they can be, and then the tables."""

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

CALM = 0.3  # processors that other programs may use
PROCESSES = ("service", "broker", "equipment", "all", "generator")
READING = "16 clients that read"
FIRST, SECOND = "2e8500c", "2e50e55"  # releases 1.0 and 1.1
# These phases run against the other release too. The goals against 1.0: the rate and the CPU.
PAIRS = {"1 client": (1.3, 0.75), "8 clients": (1.4, 0.7), "32 clients": (1.7, 0.6)}
REACH = (10, 100, None)  # ms until a verdict reaches the last of 1, 1,000 and 5,000 clients


class Goal(NamedTuple):
    """`value` must be at most `limit`, or at least `limit` if `least` is set. None: no goal, only shown."""

    name: str
    value: float
    limit: float | None
    unit: str = ""
    least: bool = False

    @property
    def met(self) -> bool:
        return self.limit is None or (self.value >= self.limit if self.least else self.value <= self.limit)


def comparison(found: dict) -> list[Goal]:
    """Ratios of this release and the other: the median of those within each round."""
    goals, other = [], found["against"]
    for phase, limits in PAIRS.items():
        rate, cpu = limits if other == FIRST else (None, None)
        pairs = [(one[phase], one[f"{phase}, {other}"]) for one in found["rounds"]]
        value = median(a["settled/s"] / b["settled/s"] for a, b in pairs)
        goals.append(Goal(f"settled/s at {phase} ÷ {other}", value, rate, least=True))
        value = median(a["cpu µs"]["all"] / b["cpu µs"]["all"] for a, b in pairs)
        goals.append(Goal(f"CPU a transaction at {phase} ÷ {other}", value, cpu))
    start = median(ours / theirs for (ours, _), (theirs, _) in found["starts"])
    return [*goals, Goal(f"time to the first answer ÷ {other}", start, 1 if other == SECOND else None)]


def crowd_goals(waits: dict, many: dict, follow: dict) -> list[Goal]:
    few, most = (f"{found['count']:,} that wait" for found in (waits, many))
    goals = [
        Goal(f"verdicts for {few}", waits["verdicts"], waits["count"], least=True),
        Goal(f"memory of the service with {few}", waits["MB"], 85, " MB"),
        Goal(f"threads with {few}", waits["threads"], 12),
        Goal(f"of {most} at once", many["at once"], many["count"], least=True),
        Goal(f"memory of the service with {most}", many["MB"], 250, " MB"),
        Goal(f"others with {most}, p90", many["ms"]["p90"], 20, " ms"),
        Goal(f"others with {most}, max", many["ms"]["max"], 1000, " ms"),
    ]
    for (count, found), limit in zip(follow.items(), REACH, strict=False):
        goals.append(Goal(f"a verdict reaches the last of {count:,} after", found["ms"], limit, " ms"))
        goals.append(Goal(f"of {count:,} that follow get it", found["reached"], count, least=True))
    return goals


def goals(found: dict) -> list[Goal]:
    """The goals, and whether this run meets them."""
    phases, crowds = found["phases"], found["crowds"]
    *reads, posts = found["million"].values()
    return [
        *(comparison(found) if found["against"] else []),
        Goal("memory after start, master and service", median(s[0][1] for s in found["starts"]), 95, " MB"),
        Goal("CPU of the service for a GET, 16 clients", phases[READING]["cpu µs"]["service"], 250, " µs"),
        *crowd_goals(crowds["waits"], crowds["many"], crowds["follow"]),
        Goal("slowest p50 of a read among a million rows", max(one["p50"] for one in reads), 10, " ms"),
        Goal("slowest POST while a million old rows are deleted", posts["max"], 100, " ms"),
    ]


def number(value: float) -> str:
    """The value with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str | float]]) -> str:
    """A Markdown table."""
    shown = ([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)
    lines = [list(head), *shown]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def goal_table(found: list[Goal]) -> str:
    def row(goal: Goal) -> list[str]:
        shown = [goal.name, number(goal.value) + goal.unit]
        if goal.limit is None:
            return [*shown, "", ""]
        wanted = f"{'≥' if goal.least else '≤'} {goal.limit:g}{goal.unit}"
        return [*shown, wanted, "met" if goal.met else "MISSED"]

    return table(("goal", "measured", "wanted", ""), map(row, found))


def text(found: dict, goals: list[Goal]) -> str:
    """The whole report."""
    rows, crowds, others = [], found["crowds"], found["others"]
    for name, phase in found["phases"].items():
        settled = phase.get("settled/s", ""), phase["verdict ms"]["p50"] if "verdict ms" in phase else ""
        cpu = [phase["cpu µs"][process] for process in PROCESSES]
        rows.append([name, phase["requests/s"], *settled, *cpu])
    head = ["", "requests/s", "settled/s", "post → verdict ms", *(f"µs {process}" for process in PROCESSES)]
    times = {name: phase["ms"] for name, phase in found["phases"].items()} | {
        "4 clients alone": crowds["alone"]
    }
    times |= {f"while {crowds[name]['count']:,} wait": crowds[name]["ms"] for name in ("waits", "many")}
    spreads = ([name, *spread.values()] for name, spread in (times | found["million"]).items())
    start = median(start[0][0] for start in found["starts"])
    end = f"First answer {start:.0f} ms after the start. Others kept {others:.1f} processors busy."
    if others > CALM:
        end += " That is much: rates and times are worse than in calm. Ratios hold better."
    tables = goal_table(goals), table(head, rows), table(("ms", *crowds["alone"]), spreads), end
    return "\n\n".join(tables)
