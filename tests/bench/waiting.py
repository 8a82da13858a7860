"""What others notice of 1,000 clients that wait, 200 that send half a head, and 100 that follow events."""

import contextlib
import itertools
import json
import resource
import time
from pathlib import Path

from clients import drive, request
from following import Follower
from idle import WAIT, Crowd
from programs import wait_until
from raw import POST as HALF_A_HEAD
from raw import answer
from stack import Stack, memory
from traffic import POST, WINDOW, Phase, measure

WAITING, HALF, FOLLOWING = 1000, 200, 100
DELAY = 3000  # milliseconds that the equipment takes
CLIENTS, SECONDS = 4, 0.7  # others: so many, and for how long they read and then write
READ = request("GET", "/transactions")
WRITE = request("POST", "/stations", json.dumps({"description": "x"}).encode())
EXPECTED = 25  # seconds that all of this takes


def others(port: int) -> dict[str, float]:
    """The 90th percentile and the maximum of other clients' requests, in milliseconds."""
    took = []
    for what, status in ((READ, 200), (WRITE, 201)):
        took += drive(port, itertools.repeat(what), CLIENTS, SECONDS, status=status).milliseconds()
    took.sort()
    return {"p90": took[-(len(took) // 10) - 1], "max": took[-1]}


def waits(folder: Path) -> dict:
    """Everyone posts at once with `Prefer: wait=20`; the others come while they wait."""
    with contextlib.ExitStack() as ends:
        stack = Stack(folder, ends, VALIDATOR_DELAY_MS=str(DELAY))
        found = {"alone ms": others(stack.port), "MB before": memory(stack.pids["service"], "VmRSS")}
        crowd = ends.enter_context(Crowd(stack.service))
        began = time.monotonic()
        clients = crowd.open(WAITING, WAIT)
        found["ms"] = others(stack.port)
        found["answers"] = [answer(client).partition(b"\r\n\r\n") for client in clients]
        found["seconds"] = time.monotonic() - began
        found["MB"] = memory(stack.pids["service"], "VmHWM")
    verdicts = [
        b"Preference-Applied" in head and json.loads(body)["status"] in ("COMPLETED", "ERROR")
        for head, _, body in found.pop("answers")
    ]
    return found | {"verdicts": sum(verdicts)}


def heads_and_followers(folder: Path) -> dict:
    """The half-sent heads, then clients that follow while others post as fast as they can."""
    with contextlib.ExitStack() as ends:
        stack = Stack(folder, ends)
        with Crowd(stack.service) as crowd:
            crowd.open(HALF, HALF_A_HEAD)
            found = {"half ms": others(stack.port)}
        phase = Phase("", "service", 2, WINDOW, post=POST)
        alone = measure(phase, stack)["settled/s"]
        clients = [Follower(stack.service) for _ in range(FOLLOWING)]
        wait_until(lambda: all(client.streams for client in clients), "all follow")
        since = time.time_ns() // 1000
        followed = measure(phase, stack)["settled/s"]
        with contextlib.suppress(AssertionError):
            wanted = stack.rows(since).keys()
            wait_until(lambda: all(wanted <= settled(client) for client in clients), "all were told", 10)
        found["followed"], found["followed ÷ alone"] = followed, followed / alone
        found["told"] = sum(wanted <= settled(client) for client in clients)
        for client in clients:
            client.stop()
    return found


def settled(client: Follower) -> set[str]:
    """The transactions whose verdict a client was told."""
    last = client.last().items()
    return {key.replace("-", "") for key, status in last if status in ("COMPLETED", "ERROR")}


def crowds(folder: Path) -> dict:
    """All of it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return waits(folder / "waits") | heads_and_followers(folder / "heads")
