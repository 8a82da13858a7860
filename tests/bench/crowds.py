"""Crowds of clients that wait for a verdict or follow events, and how they slow others down."""

import contextlib
import itertools
import json
import os
import re
import resource
import select
import time
from pathlib import Path
from statistics import median
from uuid import UUID

from clients import drive, request
from idle import WAIT, Crowd
from installation import metric, resident
from programs import wait_until
from raw import answer
from stack import Stack, step
from traffic import spread

FEW, MANY = 1000, 8000  # clients that wait
FOLLOWING, EVENTS = (1, 1000, 5000), 10  # clients that follow, and transactions that are sent one by one
DELAY = 9  # seconds that the equipment takes while clients wait
CLIENTS, SLICE = 4, 0.25  # number of others, and for how long they read and then write
READ = request("GET", "/transactions")
WRITE = request("POST", "/stations", json.dumps({"description": "x"}).encode())
OPEN = 300  # descriptors that this process and the service keep for other things
LONGEST = 10_000_000  # microseconds until a verdict must have reached everyone
VERDICT = rb'"id":"%s","station":[^}]*},"status":"(?:COMPLETED|ERROR)"'


def others(port: int, seconds: float) -> list[float]:
    """The times of other clients' requests, in milliseconds."""
    took, end = [], time.monotonic() + seconds
    while not took or time.monotonic() < end:
        for each, wanted in ((READ, 200), (WRITE, 201)):
            took += drive(port, itertools.repeat(each), CLIENTS, SLICE, status=wanted).milliseconds()
    return took


def waits(stack: Stack, count: int, stay: bool) -> dict:
    """Everyone posts at once with `Prefer: wait=20`; the others come until after the first verdicts.

    The equipment takes DELAY seconds. If they do not `stay`, they leave without their verdicts.
    """
    step(f"{count:,} clients wait")
    worker, found, began = stack.pids["service"], {"count": count}, time.monotonic()
    with Crowd(stack.service) as crowd:
        clients = crowd.open(count, WAIT)
        took = others(stack.port, DELAY / 6)
        waiting = lambda: metric(stack.service, "energy2go_waiters")  # noqa: E731
        with contextlib.suppress(AssertionError):
            wait_until(lambda: waiting() == count, "all of them wait", DELAY / 6)
        found["at once"] = waiting()
        found["ms"] = spread(took + others(stack.port, began + DELAY + 1 - time.monotonic()))
        found["threads"] = len(os.listdir(f"/proc/{worker}/task"))
        answers = [answer(client).partition(b"\r\n\r\n")[2] for client in clients] if stay else []
        found["MB"] = resident(worker, "VmHWM")
    found["verdicts"] = sum(json.loads(body)["status"] in ("COMPLETED", "ERROR") for body in answers)
    return found


def reach(stack: Stack, count: int) -> dict:
    """How long a verdict takes from its row to the last of `count` followers, in milliseconds."""
    step(f"{count:,} clients follow")
    found, poller = {"ms": [], "reached": count}, select.epoll()
    with Crowd(stack.service) as crowd:
        clients = {client.fileno(): client for client in crowd.open(count, request("GET", "/events"))}
        for number, client in clients.items():
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            poller.register(number, select.EPOLLIN)
        for _ in range(EVENTS):
            since = time.time_ns() // 1000
            key = stack.service.post("/transactions", {"station_id": 1}).json["id"]
            verdict = re.compile(VERDICT % key.encode())
            missing, received, last = set(clients), dict.fromkeys(clients, b""), 0
            while missing and time.time_ns() // 1000 < since + LONGEST:
                for number, _ in poller.poll(0.1):
                    received[number] += clients[number].recv(65536)
                    if number in missing and verdict.search(received[number]):
                        missing.discard(number)
                        last = time.time_ns() // 1000
            found["ms"].append((last - stack.rows(since)[UUID(key).hex][1]) / 1000)
            found["reached"] = min(found["reached"], count - len(missing))
    return found | {"ms": median(found["ms"])}


def crowds(folder: Path) -> dict:
    """Measure all crowds that this process may have descriptors for."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard - OPEN if hard != resource.RLIM_INFINITY else MANY
    with contextlib.ExitStack() as ends:
        many = min(MANY, most)
        stack = Stack(folder / "wait", ends, VALIDATOR_DELAY_MS=f"{DELAY * 1000}", WAITS=f"{many}")
        found = {"alone": spread(others(stack.port, 1)), "waits": waits(stack, FEW, stay=True)}
        found["many"] = waits(stack, many, stay=False)
    with contextlib.ExitStack() as ends:
        # The equipment takes so long that everyone has the event before the verdict by then.
        options = {"VALIDATOR_DELAY_MS": "500", "WAITS": f"{sum(FOLLOWING)}"}
        stack = Stack(folder / "follow", ends, **options)
        found["follow"] = {count: reach(stack, count) for count in FOLLOWING if count <= most}
    return found
