"""One phase of traffic, with a number of clients or of posts per second, and its results."""

import itertools
import json
import time
from statistics import median
from typing import NamedTuple

from clients import SECOND, Sample, WrongAnswer, drive, request
from stack import STATION, Server, Stack, busy

BODY = json.dumps({"station_id": STATION}).encode()
POST = request("POST", "/transactions", BODY)
POST_AND_WAIT = request("POST", "/transactions", BODY, Prefer="wait=10")
WINDOW = 32  # connections in a phase with a fixed rate
DRAIN = 60  # seconds for everything to be settled after a phase


class Phase(NamedTuple):
    """Traffic to `server` for `seconds`; a `rate` is in posts per second, over WINDOW connections."""

    name: str
    server: str
    seconds: float
    clients: int = WINDOW
    rate: int | None = None
    post: bytes = POST


def measure(phase: Phase, server: Server) -> dict:
    """Run a phase. Times are in milliseconds, CPU in microseconds per transaction and process.

    `others` is how many processors other programs used during the phase; they slow down everything here.
    """
    since, clock = time.time_ns() // 1000, time.time_ns() - time.monotonic_ns()
    before, worked, began = server.cpu(), busy(), time.monotonic()
    sample = drive(server.port, itertools.repeat(phase.post), phase.clients, phase.seconds, phase.rate)
    result = {
        "posts": len(sample.done),
        "post/s": len(sample.done) / (sample.done[-1] - sample.due[0]) * SECOND,
    }
    result["post ms"] = spread(sample.milliseconds())
    if isinstance(server, Stack):
        server.drain(DRAIN)
        cpu = server.cpu()
        result |= verdicts(sample, server, since, clock)
    else:
        cpu = server.cpu()
    result["cpu µs"] = {name: (cpu[name] - before[name]) / 1000 / len(sample.done) for name in cpu}
    others = busy() - worked - sum(cpu[name] - before[name] for name in cpu) / SECOND
    result["others"] = max(0, others) / (time.monotonic() - began)
    result["cpu µs"]["all"] = sum(used for name, used in result["cpu µs"].items() if name != "generator")
    return result


def verdicts(sample: Sample, server: Stack, since: int, clock: int) -> dict:
    """Results from the stored rows: settled per second until the last verdict, and the time to each verdict.

    The time begins when the request was due. It ends with the row's `updated`, which the ledger sets when it
    begins to write the batch. Both clocks are this machine's. Reading rows puts no load on the service.
    """
    rows = server.rows(since)
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
    """The median, the 99th percentile (99 % do not exceed it) and the maximum."""
    values = sorted(values)
    return {"p50": median(values), "p99": values[-(len(values) // 100) - 1], "max": values[-1]}


def middle(rounds: list):
    """The median, over rounds, of every number in results of the same shape; for a `max`, the maximum."""
    if isinstance(rounds[0], dict):
        return {
            name: max(r[name] for r in rounds) if name == "max" else middle([r[name] for r in rounds])
            for name in rounds[0]
        }
    return median(rounds)
