"""One phase of traffic, with a number of clients or of posts per second, and its results."""

import itertools
import json
import time
from statistics import median
from typing import NamedTuple
from uuid import UUID

from clients import SECOND, Sample, WrongAnswer, drive, request
from stack import STATION, Stack, busy

BODY = json.dumps({"station_id": STATION}).encode()
POST = request("POST", "/transactions", BODY)
POST_AND_WAIT = request("POST", "/transactions", BODY, Prefer="wait=10")
WINDOW = 32  # connections in a phase with a fixed rate
DRAIN = 60  # seconds for everything to be settled after a phase


class Phase(NamedTuple):
    """Traffic for `seconds`; a `rate` is in posts per second. Without a `post`, clients read."""

    name: str
    seconds: float
    clients: int = WINDOW
    rate: int | None = None
    post: bytes = POST


def measure(phase: Phase, stack: Stack) -> dict:
    """Run a phase. Times are in milliseconds, CPU in microseconds per request and process.

    `others` is how many processors other programs used during the phase; they slow down everything here.
    """
    requests = itertools.cycle([phase.post] if phase.post else reads(stack))
    since, clock = time.time_ns() // 1000, time.time_ns() - time.monotonic_ns()
    before, worked, began = stack.cpu(), busy(), time.monotonic()
    sample = drive(
        stack.port, requests, phase.clients, phase.seconds, phase.rate, 201 if phase.post else 200
    )
    count, result = len(sample.done), {"ms": spread(sample.milliseconds())}
    result["requests/s"] = count / (sample.done[-1] - sample.due[0]) * SECOND
    stack.drain(DRAIN)
    used = {name: now - before[name] for name, now in stack.cpu().items()}
    result["others"] = max(0, busy() - worked - sum(used.values()) / SECOND) / (time.monotonic() - began)
    result["cpu µs"] = {name: each / 1000 / count for name, each in used.items()}
    result["cpu µs"]["all"] = sum(used.values()) / 1000 / count - result["cpu µs"]["generator"]
    return result | (verdicts(sample, stack, since, clock) if phase.post else {})


def reads(stack: Stack) -> list[bytes]:
    """Requests for some of the transactions."""
    found = stack.query('SELECT id FROM "transaction" ORDER BY random() LIMIT 1000')
    return [request("GET", f"/transactions/{UUID(key)}") for (key,) in found]


def verdicts(sample: Sample, stack: Stack, since: int, clock: int) -> dict:
    """Results from the stored rows: settled per second until the last verdict, and the time to each verdict.

    The time begins when the request was due. It ends with the row's `updated`, which the ledger sets when it
    begins to write the batch. Both clocks are this machine's. Reading rows puts no load on the service.
    """
    rows = stack.rows(since)
    due = {
        key.decode().replace("-", ""): (at + clock) / 1000
        for key, at in zip(sample.ids, sample.due, strict=True)
    }
    if missing := due.keys() - rows.keys():
        raise WrongAnswer(f"{len(missing)} of {len(due)} transactions got a 201 and no verdict")
    if any(rows[key][0] < at - 1000 for key, at in due.items()):
        raise WrongAnswer("rows are older than their requests: the clock was set, measure again")
    took = [(rows[key][1] - at) / 1000 for key, at in due.items()]
    settled = max(rows[key][1] for key in due) - min(due.values())
    return {"settled/s": len(due) / settled * 1e6, "verdict ms": spread(took)}


def spread(values: list[float]) -> dict[str, float]:
    """The median, percentiles (so many do not exceed it) and the maximum."""
    values = sorted(values)
    return {
        "p50": median(values),
        "p90": values[-(len(values) // 10) - 1],
        "p99": values[-(len(values) // 100) - 1],
        "max": values[-1],
    }


def middle(rounds: list):
    """The median, over rounds, of every number in results of the same shape; for a `max`, the maximum."""
    if isinstance(rounds[0], dict):
        return {
            name: max(r[name] for r in rounds) if name == "max" else middle([r[name] for r in rounds])
            for name in rounds[0]
        }
    return median(rounds)
