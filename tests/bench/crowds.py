"""Crowds of clients that wait for a verdict, send half a head, or follow events, and what others notice."""

import contextlib
import itertools
import json
import re
import resource
import select
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple
from uuid import UUID

from clients import drive, request
from idle import WAIT, Crowd
from programs import wait_until
from progress import step
from raw import POST as HALF_A_HEAD
from raw import answer
from stack import Stack, memory, status
from traffic import spread

CLIENTS, SLICE = 4, 0.25  # others: so many, and for how long they read and then write
READ = request("GET", "/transactions")
WRITE = request("POST", "/stations", json.dumps({"description": "x"}).encode())
OPEN = 300  # descriptors that this process and the service keep for other things
LONGEST = 10_000_000  # microseconds until a verdict must have reached everyone
VERDICT = rb'"id":"%s","station":[^}]*},"status":"(?:COMPLETED|ERROR)"'


class Sizes(NamedTuple):
    """How many clients there are of each kind."""

    waiting: int = 1000
    many: int = 8000  # that wait too
    half: int = 200  # that send half a head
    following: tuple[int, ...] = (1, 1000, 5000)
    events: int = 10  # that are sent to those, one by one


def others(port: int, seconds: float) -> list[float]:
    """The times of other clients' requests, in milliseconds."""
    took, end = [], time.monotonic() + seconds
    while not took or time.monotonic() < end:
        for what, wanted in ((READ, 200), (WRITE, 201)):
            took += drive(port, itertools.repeat(what), CLIENTS, SLICE, status=wanted).milliseconds()
    return took


def waits(stack: Stack, count: int, delay: float, stay: bool = True) -> dict:
    """Everyone posts at once with `Prefer: wait=20`; the others come until after the first verdicts.

    The equipment takes `delay` seconds. If they do not `stay`, they leave without their verdicts.
    """
    step(f"{count:,} clients wait")
    worker, found, began = stack.pids["service"], {"count": count}, time.monotonic()
    with Crowd(stack.service) as crowd:
        clients = crowd.open(count, WAIT)
        took = others(stack.port, delay / 6)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: waiting(stack) == count, "all of them wait", delay / 6)
        found["at once"] = waiting(stack)
        found["ms"] = spread(took + others(stack.port, began + delay + 1 - time.monotonic()))
        found["threads"] = status(worker, "Threads")
        answers = [answer(client).partition(b"\r\n\r\n") for client in clients] if stay else []
        found["MB"] = memory(worker, "VmHWM")
    found["verdicts"] = sum(
        b"Preference-Applied" in head and json.loads(body)["status"] in ("COMPLETED", "ERROR")
        for head, _, body in answers
    )
    return found


def waiting(stack: Stack) -> int:
    """How many requests wait for a verdict now."""
    return int(re.search(rb"(?m)^energy2go_waiters (\d+)", stack.service.get("/metrics").body)[1])


def half_heads(stack: Stack, count: int) -> dict[str, float]:
    """What others notice of clients that send half a head and stop."""
    with Crowd(stack.service) as crowd:
        crowd.open(count, HALF_A_HEAD)
        return spread(others(stack.port, 1))


def reach(stack: Stack, count: int, events: int) -> dict:
    """How long a verdict takes from its row to the last of `count` followers, in milliseconds."""
    step(f"{count:,} clients follow")
    found, poller = {"ms": [], "reached": count}, select.epoll()
    with Crowd(stack.service) as crowd:
        clients = {client.fileno(): client for client in crowd.open(count, request("GET", "/events"))}
        for number, client in clients.items():
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            poller.register(number, select.EPOLLIN)
        for _ in range(events):
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


def crowds(folder: Path, sizes: Sizes, delay: float) -> dict:
    """All of it. `delay` is how many seconds the equipment takes while clients wait."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard - OPEN if hard != resource.RLIM_INFINITY else sizes.many
    many = min(sizes.many, most)
    with contextlib.ExitStack() as ends:
        stack = Stack(folder / "wait", ends, VALIDATOR_DELAY_MS=f"{delay * 1000:.0f}", WAITS=f"{many}")
        found = {"alone": spread(others(stack.port, 1)), "half": half_heads(stack, sizes.half)}
        found["waits"] = waits(stack, sizes.waiting, delay)
        found["many"] = waits(stack, many, delay, stay=False)
    with contextlib.ExitStack() as ends:
        # The equipment takes so long that everyone has the event before the verdict by then.
        options = {"VALIDATOR_DELAY_MS": f"{delay / 18 * 1000:.0f}", "WAITS": f"{sum(sizes.following)}"}
        stack = Stack(folder / "follow", ends, **options)
        found["follow"] = {
            count: reach(stack, count, sizes.events) for count in sizes.following if count <= most
        }
    return found
