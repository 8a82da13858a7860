"""One phase of traffic, with a number of clients, and its results."""

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
DRAIN = 60  # seconds for everything to be settled after a phase


class Phase(NamedTuple):
    """Traffic for `seconds`. Without a `post`, clients read."""

    name: str
    seconds: float
    clients: int
    post: bytes = POST


def measure(phase: Phase, stack: Stack) -> dict:
    """Run a phase. Times are in milliseconds, CPU in microseconds per request and process.

    `others` is how many processors other programs used during the phase; they slow down everything here.
    """
    requests = itertools.cycle([phase.post] if phase.post else reads(stack))
    since, clock = time.time_ns() // 1000, time.time_ns() - time.monotonic_ns()
    before, worked, began = stack.cpu(), busy(), time.monotonic()
    sample = drive(stack.port, requests, phase.clients, phase.seconds, 201 if phase.post else 200)
    count, result = len(sample.done), {"ms": spread(sample.milliseconds())}
    result["requests/s"] = count / (sample.done[-1] - sample.sent[0]) * SECOND
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

    The time begins with the request and ends with the row's `updated`, which the ledger sets when it begins
    to write the batch. Both clocks are this machine's. Reading rows puts no load on the service.
    """
    rows = stack.rows(since)
    keys = (key.decode().replace("-", "") for key in sample.ids)
    sent = {key: (at + clock) / 1000 for key, at in zip(keys, sample.sent, strict=True)}
    if missing := sent.keys() - rows.keys():
        raise WrongAnswer(f"{len(missing)} of {len(sent)} transactions got a 201 and no verdict")
    if any(rows[key][0] < at - 1000 for key, at in sent.items()):
        raise WrongAnswer("rows are older than their requests: the clock was set, measure again")
    settled = max(rows[key][1] for key in sent) - min(sent.values())
    took = spread([(rows[key][1] - at) / 1000 for key, at in sent.items()])
    return {"settled/s": len(sent) / settled * 1e6, "verdict ms": took}


def spread(values: list[float]) -> dict[str, float]:
    """The median, percentiles (so many do not exceed it) and the maximum."""
    values = sorted(values)
    high = {f"p{percent}": values[-(len(values) * (100 - percent) // 100) - 1] for percent in (90, 99)}
    return {"p50": median(values), **high, "max": values[-1]}


def middle(rounds: list):
    """The median, over rounds, of every number in results of the same shape; for a `max`, the maximum."""
    if not isinstance(rounds[0], dict):
        return median(rounds)
    each = {name: [one[name] for one in rounds] for name in rounds[0]}
    return {name: max(values) if name == "max" else middle(values) for name, values in each.items()}
