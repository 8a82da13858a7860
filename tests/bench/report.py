"""The report of a run: first the goals, as ratios within the run, then the tables of measurements."""

from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

CLIENTS, GENERATOR = "32 clients", "generator alone, 32 clients"
BARE, SPREAD = "bare, 32 clients", "bare on all processors, 32 clients"
HOLLOW = "nothing stored or asked, 32 clients"
CALM = 0.3  # processors that other programs may use
PROCESSES = ("service", "master", "broker", "equipment", "all", "generator")


class Goal(NamedTuple):
    """`value` must be at most `limit`, or at least `limit` if `least` is set."""

    name: str
    value: float
    limit: float
    unit: str = ""
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit


def ratio(rounds: list[dict], value: Callable[[dict], float], over: Callable[[dict], float]) -> float:
    """The median, over rounds, of a ratio within one round. A slow minute slows both numbers."""
    return median(value(one) / over(one) for one in rounds)


def goals(found: dict) -> list[Goal]:
    """The goals, and whether this run meets them."""
    rounds, phases, growth, peak = found["rounds"], found["phases"], found["growth µs"], found["peak MB"]
    few, many, crowds = min(growth), max(growth), found["crowds"]
    grown = {
        name: growth[many][name] / growth[few][name] for name in growth[few] if not name.endswith(": commit")
    }
    worst = max(grown, key=grown.get)
    return [
        Goal(
            "settled/s at 32 clients ÷ bare",
            ratio(rounds, lambda r: r[CLIENTS]["settled/s"], lambda r: r[BARE]["post/s"]),
            0.6,
            least=True,
        ),
        Goal("CPU a transaction at 32 clients, all processes", phases[CLIENTS]["cpu µs"]["all"], 600, " µs"),
        Goal("post → verdict p50 at 1 client", phases["1 client"]["verdict ms"]["p50"], 2, " ms"),
        Goal("post → verdict p50 at 32 clients", phases[CLIENTS]["verdict ms"]["p50"], 30, " ms"),
        Goal("PENDING at the end", found["pending"], 0),
        Goal(f"slowest growth, {few:,} to {many:,} rows: {worst}", grown[worst], 1.5, " ×"),
        Goal(
            f"longest commit while {many:,} old rows are deleted",
            found["deleting"]["round ms"]["max"],
            100,
            " ms",
        ),
        Goal("RSS of the service, at most", peak["service"], 60, " MB"),
        Goal("RSS of the equipment, at most", peak["equipment"], 6, " MB"),
        Goal("verdicts for 1,000 clients that wait", crowds["verdicts"], 1000, least=True),
        Goal("RSS of the service with them, at most", crowds["MB"], 128, " MB"),
        Goal("other requests, p90, while they wait", crowds["ms"]["p90"], 100, " ms"),
        Goal("other requests, p90, beside 200 half heads", crowds["half ms"]["p90"], 100, " ms"),
        Goal("clients of 100 that were told everything", crowds["told"], 100, least=True),
    ]


def ratio_table(rounds: list[dict]) -> str:
    """The service's numbers divided by the bare route's of the same round."""

    def rate(name: str) -> Callable[[dict], float]:
        return lambda one: one[name].get("settled/s", one[name]["post/s"])

    def cpu(name: str, process: str) -> Callable[[dict], float]:
        return lambda one: one[name]["cpu µs"][process]

    def p50(name: str, what: str) -> Callable[[dict], float]:
        return lambda one: one[name][what]["p50"]

    rows = {
        "settled/s at 1 client": (rate("1 client"), rate("bare, 1 client")),
        "settled/s at 8 clients, over bare at 32": (rate("8 clients"), rate(BARE)),
        "settled/s at 32 clients": (rate(CLIENTS), rate(BARE)),
        "settled/s at 32 clients, over bare on all processors": (rate(CLIENTS), rate(SPREAD)),
        "posts/s at 32 clients where nothing is stored or asked": (rate(HOLLOW), rate(BARE)),
        "POST p50 at 1 client": (p50("1 client", "post ms"), p50("bare, 1 client", "post ms")),
        "CPU of the service at 1 client": (cpu("1 client", "service"), cpu("bare, 1 client", "service")),
        "CPU of the service at 32 clients": (cpu(CLIENTS, "service"), cpu(BARE, "service")),
        "CPU of all processes at 32 clients": (cpu(CLIENTS, "all"), cpu(BARE, "all")),
        "the generator's own ceiling": (rate(GENERATOR), rate(BARE)),
    }
    found = ((name, f"{ratio(rounds, value, over):.2f}") for name, (value, over) in rows.items())
    return table(("times that of the bare route", ""), found)


def number(value: float) -> str:
    """The value with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [
            cell.ljust(w) if place == 0 else cell.rjust(w)
            for place, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def goal_table(found: list[Goal]) -> str:
    return table(
        ("goal", "measured", "wanted", ""),
        (
            (
                g.name,
                number(g.value) + g.unit,
                f"{'≥' if g.least else '≤'} {g.limit:g}{g.unit}",
                "met" if g.met else "MISSED",
            )
            for g in found
        ),
    )


def phase_table(phases: dict[str, dict]) -> str:
    """The rates, times and CPU of every phase."""

    def times(result: dict, name: str) -> str:
        return (
            " / ".join(number(result[name][key]) for key in ("p50", "p99", "max")) if name in result else ""
        )

    def row(name: str, result: dict) -> list[str]:
        rates = [number(result[key]) if key in result else "" for key in ("post/s", "settled/s")]
        cpu = [
            number(result["cpu µs"][process]) if process in result["cpu µs"] else "" for process in PROCESSES
        ]
        return [name, *rates, times(result, "post ms"), times(result, "verdict ms"), *cpu]

    head = ["", "post/s", "settled/s", "POST ms p50/p99/max", "post → verdict ms p50/p99/max"]
    return table(
        [*head, *(f"µs {process}" for process in PROCESSES)], (row(*item) for item in phases.items())
    )


def growth_table(growth: dict[int, dict]) -> str:
    """The median of every operation by number of rows, and how much it grew."""
    few, many = min(growth), max(growth)
    return table(
        ["median µs at … rows", *(f"{rows:,}" for rows in growth), "grew"],
        (
            [
                name,
                *(number(found[name]) for found in growth.values()),
                f"{growth[many][name] / growth[few][name]:.2f} ×",
            ]
            for name in growth[few]
        ),
    )


def deletion_table(deleting: dict[str, dict], rows: int) -> str:
    """How long posts and commits take while old rows are deleted."""
    names = {
        "round ms": "round of deletion with its commit",
        "post ms": "POST, 100 a second, at the same time",
    }
    return table(
        (f"ms, {rows:,} old rows", "p50", "p99", "max"),
        ((name, *map(number, deleting[key].values())) for key, name in names.items()),
    )


def crowd_table(crowds: dict) -> str:
    """What others notice of many clients at once."""
    rows = [
        (name, number(crowds[key]["p90"]), number(crowds[key]["max"]))
        for name, key in (
            ("4 clients alone", "alone ms"),
            ("while 1,000 wait for a verdict", "ms"),
            ("beside 200 that sent half a head", "half ms"),
        )
    ]
    settled = f"{number(crowds['followed'])}, {crowds['followed ÷ alone']:.2f} of the rate without them"
    return (
        table(("other requests, ms", "p90", "max"), rows)
        + f"\n\nThe 1,000 have their verdicts after {crowds['seconds']:.1f} s. "
        + f"Settled/s while 100 clients follow: {settled}."
    )


def memory_table(peak: dict[str, float]) -> str:
    return table(("peak RSS", "MB"), ((name, number(held)) for name, held in peak.items()))


def text(found: dict, goals: list[Goal]) -> str:
    """The whole report; the ratios that other machines should find too come first."""
    machine = found["machine"]
    tables = [goal_table(goals), ratio_table(found["rounds"]), phase_table(found["phases"])]
    tables += [growth_table(found["growth µs"]), deletion_table(found["deleting"], max(found["growth µs"]))]
    tables += [crowd_table(found["crowds"]), memory_table(found["peak MB"])]
    tables.append(
        f"{machine['processors']} processors, of which others kept {machine['others']:.1f} busy; "
        f"the disk syncs 4 KiB in {machine['sync µs']:.0f} µs."
    )
    if machine["others"] > CALM:
        tables.append(
            "That is much: rates and times are worse than in calm. Ratios hold better; measure again."
        )
    return "\n\n".join(tables)
