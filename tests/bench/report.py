"""The report of a run: first the goals, as ratios within the run where they can be, then the tables."""

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

CALM = 0.3  # processors that other programs may use
PROCESSES = ("service", "master", "broker", "equipment", "all", "generator")
PAIRS = ("1 client", "8 clients", "32 clients")  # these phases run against the other release too
READING = "16 clients that read"
FIRST, SECOND = "2e8500c", "2e50e55"  # releases 1.0 and 1.1
RATES, CPU = (1.3, 1.4, 1.7), (0.75, 0.7, 0.6)  # the goals against release 1.0, in PAIRS
START = 1  # the goal against release 1.1: the first answer after a start comes no later
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
    if not (other := found["against"]):
        return []
    rates, costs = [], []
    for phase, rate, cpu in zip(PAIRS, RATES, CPU, strict=True):
        limits = (rate, cpu) if other == FIRST else (None, None)
        pairs = [(one[phase], one[f"{phase}, {other}"]) for one in found["rounds"]]
        value = median(a["settled/s"] / b["settled/s"] for a, b in pairs)
        rates.append(Goal(f"settled/s at {phase} ÷ {other}", value, limits[0], least=True))
        value = median(a["cpu µs"]["all"] / b["cpu µs"]["all"] for a, b in pairs)
        costs.append(Goal(f"CPU a transaction at {phase} ÷ {other}", value, limits[1]))
    start = median(ours / theirs for (ours, _), (theirs, _) in found["starts"])
    limit = START if other == SECOND else None
    return [*rates, *costs, Goal(f"time to the first answer ÷ {other}", start, limit)]


def crowd_goals(crowds: dict) -> list[Goal]:
    waits, many = crowds["waits"], crowds["many"]
    few, most = (f"{found['count']:,} that wait" for found in (waits, many))
    goals = [
        Goal(f"verdicts for {few}", waits["verdicts"], waits["count"], least=True),
        Goal(f"memory of the service with {few}", waits["MB"], 85, " MB"),
        Goal(f"threads with {few}", waits["threads"], 12),
        Goal(f"of {most} at once", many["at once"], many["count"], least=True),
        Goal(f"memory of the service with {most}", many["MB"], 250, " MB"),
        Goal(f"others with {most}, p90", many["ms"]["p90"], 20, " ms"),
        Goal(f"others with {most}, max", many["ms"]["max"], 1000, " ms"),
        Goal("others beside half-sent heads, p90", crowds["half"]["p90"], 100, " ms"),
    ]
    for (count, found), limit in zip(crowds["follow"].items(), REACH, strict=False):
        goals.append(Goal(f"a verdict reaches the last of {count:,} after", found["ms"], limit, " ms"))
        goals.append(Goal(f"of {count:,} that follow get it", found["reached"], count, least=True))
    return goals


def goals(found: dict) -> list[Goal]:
    """The goals, and whether this run meets them."""
    phases, growth = found["phases"], found["growth ms"]
    few, many = min(growth), max(growth)
    grew, worst = max((growth[many][name] / growth[few][name], name) for name in growth[few])
    return [
        *comparison(found),
        Goal("memory after start, master and service", median(s[0][1] for s in found["starts"]), 95, " MB"),
        Goal("CPU of the service for a GET, 16 clients", phases[READING]["cpu µs"]["service"], 250, " µs"),
        Goal("post → verdict p50 at 1 client", phases["1 client"]["verdict ms"]["p50"], 2, " ms"),
        Goal("post → verdict p50 at 32 clients", phases["32 clients"]["verdict ms"]["p50"], 30, " ms"),
        Goal("PENDING at the end", found["pending"], 0),
        *crowd_goals(found["crowds"]),
        Goal(f"slowest growth, {few:,} to {many:,} rows: {worst}", grew, 1.5, " ×"),
        Goal(f"slowest POST while {many:,} old rows are deleted", found["deleting ms"]["max"], 100, " ms"),
        Goal("memory of the equipment, at most", found["equipment MB"], 6, " MB"),
    ]


def number(value: float) -> str:
    """The value with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str | float]]) -> str:
    """A Markdown table with aligned columns."""
    shown = ([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)
    lines = [list(head), *shown]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    pads = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    aligned = ([pad(*each) for pad, *each in zip(pads, line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def goal_table(found: list[Goal]) -> str:
    def row(goal: Goal) -> list[str]:
        shown = [goal.name, number(goal.value) + goal.unit]
        if goal.limit is None:
            return [*shown, "", ""]
        wanted = f"{'≥' if goal.least else '≤'} {goal.limit:g}{goal.unit}"
        return [*shown, wanted, "met" if goal.met else "MISSED"]

    return table(("goal", "measured", "wanted", ""), map(row, found))


def phase_table(phases: dict[str, dict]) -> str:
    """The rates, times and CPU of every phase."""
    head, rows = ["", "requests/s", "settled/s", "ms p50/p99/max", "post → verdict ms p50/p99/max"], []
    for name, found in phases.items():
        times = [
            " / ".join(number(found[key][each]) for each in ("p50", "p99", "max")) if key in found else ""
            for key in ("ms", "verdict ms")
        ]
        cpu = [found["cpu µs"][process] for process in PROCESSES]
        rows.append([name, found["requests/s"], found.get("settled/s", ""), *times, *cpu])
    return table([*head, *(f"µs {process}" for process in PROCESSES)], rows)


def growth_table(growth: dict[int, dict]) -> str:
    """The median of every request by number of rows, and how much it grew."""
    few, *_, many = growth.values()
    rows = (
        [name, *(found[name] for found in growth.values()), f"{many[name] / few[name]:.2f} ×"]
        for name in few
    )
    return table(["median ms at … rows", *(f"{count:,}" for count in growth), "grew"], rows)


def times_table(found: dict) -> str:
    """What others notice of crowds and of deletion."""
    waits, many = found["crowds"]["waits"], found["crowds"]["many"]
    rows = {
        "4 clients alone": found["crowds"]["alone"],
        f"while {waits['count']:,} wait for a verdict": waits["ms"],
        f"while {many['count']:,} wait for a verdict": many["ms"],
        "beside half-sent heads": found["crowds"]["half"],
        "POST, 100 a second, while old rows are deleted": found["deleting ms"],
    }
    return table(("ms", *waits["ms"]), ([name, *times.values()] for name, times in rows.items()))


def text(found: dict, goals: list[Goal]) -> str:
    """The whole report; the ratios that other machines should find too come first."""
    start, others = median(start[0][0] for start in found["starts"]), found["others"]
    tables = [goal_table(goals), phase_table(found["phases"])]
    tables += [growth_table(found["growth ms"]), times_table(found)]
    tables.append(f"First answer {start:.0f} ms after the start. Others kept {others:.1f} processors busy.")
    if others > CALM:
        tables.append("That is much: rates and times are worse than in calm. Ratios hold better.")
    return "\n\n".join(tables)
