"""Crowds of clients that wait for a verdict, send half a head, or follow events, and what others notice."""

import contextlib
import itertools
import json
import re
import resource
import select
import socket
import threading
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
from raw import answer, connect
from stack import Stack, memory, status
from traffic import spread

CLIENTS, SLICE = 4, 0.25  # others: so many, and for how long they read and then write
READ = request("GET", "/transactions")
WRITE = request("POST", "/stations", json.dumps({"description": "x"}).encode())
OPEN = 300  # descriptors that this process and the service keep for other things
QUIET = 0.1  # seconds without a byte, after which an event has reached everyone
VERDICT = re.compile(rb'"id":"([^"]{36})","station":[^}]*},"status":"(?:COMPLETED|ERROR)"')


class Sizes(NamedTuple):
    """How many clients there are of each kind."""

    waiting: int = 1000
    many: int = 8000  # that wait too
    half: int = 200  # that send half a head
    following: tuple[int, ...] = (1, 1000, 5000)
    events: int = 10  # that are sent to those, one by one


def others(port: int, seconds: float) -> dict[str, float]:
    """The times of other clients' requests, in milliseconds."""
    took, end = [], time.monotonic() + seconds
    while not took or time.monotonic() < end:
        for what, wanted in ((READ, 200), (WRITE, 201)):
            took += drive(port, itertools.repeat(what), CLIENTS, SLICE, status=wanted).milliseconds()
    return spread(took)


def waits(folder: Path, count: int, delay: float, stay: bool = True) -> dict:
    """Everyone posts at once with `Prefer: wait=20`; the others come until after the first verdicts.

    The equipment takes `delay` seconds. If they do not `stay`, they leave without their verdicts.
    """
    step(f"{count:,} clients wait")
    with contextlib.ExitStack() as ends:
        stack = Stack(folder, ends, VALIDATOR_DELAY_MS=str(round(delay * 1000)), WAITS=str(count))
        worker, found = stack.pids["service"], {"alone ms": others(stack.port, 1)}
        crowd, began = ends.enter_context(Crowd(stack.service)), time.monotonic()
        clients = crowd.open(count, WAIT)
        found["ms"] = others(stack.port, delay + 1 - (time.monotonic() - began))
        found["threads"] = status(worker, "Threads")
        answers = [answer(client).partition(b"\r\n\r\n") for client in clients] if stay else []
        found["seconds"] = time.monotonic() - began
        found["MB"] = memory(worker, "VmHWM")
    verdicts = [
        b"Preference-Applied" in head and json.loads(body)["status"] in ("COMPLETED", "ERROR")
        for head, _, body in answers
    ]
    return found | {"count": count, "verdicts": sum(verdicts)}


def half_heads(stack: Stack, count: int) -> dict[str, float]:
    """What others notice of clients that send half a head and stop."""
    with Crowd(stack.service) as crowd:
        crowd.open(count, HALF_A_HEAD)
        return others(stack.port, 1)


class Followers:
    """Clients that follow while this is entered. One thread reads for all of them and parses nothing."""

    def __init__(self, port: int, count: int):
        self._ends, self._stop, self._poller = contextlib.ExitStack(), False, select.epoll()
        self._clients = {client.fileno(): client for client in (self._open(port) for _ in range(count))}
        self._received = {number: bytearray() for number in self._clients}
        self._last = time.time_ns()  # when the last byte came to anyone
        self._thread = threading.Thread(target=self._read)

    def _open(self, port: int) -> socket.socket:
        client = self._ends.enter_context(connect(port))
        client.sendall(request("GET", "/events"))
        self._poller.register(client, select.EPOLLIN)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        return client

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop = True
        self._thread.join()
        self._ends.close()

    def _read(self) -> None:
        while not self._stop:
            for number, _ in self._poller.poll(0.1):
                self._received[number] += self._clients[number].recv(65536)
                self._last = time.time_ns()

    def _complete(self, wanted: set[bytes]) -> int:
        return sum(wanted <= set(VERDICT.findall(bytes(data))) for data in self._received.values())

    def await_verdicts(self, wanted: set[bytes]) -> tuple[int, int]:
        """How many clients got a verdict for each of these ids within 10 s, and when the last byte came."""

        looked = 0

        def everyone() -> bool:
            nonlocal looked
            if self._last == looked or time.time_ns() - self._last < QUIET * 1e9:
                return False
            looked = self._last  # looking takes time, so we do it once after each piece of news
            return self._complete(wanted) == len(self._clients)

        with contextlib.suppress(AssertionError):
            wait_until(everyone, "everyone has them", 10)
        return self._complete(wanted), self._last


def reach(stack: Stack, count: int, events: int) -> dict:
    """How long a verdict takes from its row's `updated` to the last of the followers, in milliseconds."""
    step(f"{count:,} clients follow")
    took, reached = [], count
    with Followers(stack.port, count) as followers:
        for _ in range(events):
            since = time.time_ns() // 1000
            key = stack.service.post("/transactions", {"station_id": 1}).json["id"]
            got, last = followers.await_verdicts({key.encode()})
            took.append((last / 1000 - stack.rows(since)[UUID(key).hex][1]) / 1000)
            reached = min(reached, got)
    return {"ms": median(took), "max": max(took), "reached": reached}


def crowds(folder: Path, sizes: Sizes, seconds: float) -> dict:
    """All of it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard - OPEN if hard != resource.RLIM_INFINITY else sizes.many
    found = {
        "waits": waits(folder / "waits", sizes.waiting, seconds),
        "many": waits(folder / "many", min(sizes.many, most), 3 * seconds, stay=False),
    }
    with contextlib.ExitStack() as ends:
        # The equipment takes so long that everyone has the event before the verdict by then.
        delay = str(round(seconds / 6 * 1000))
        stack = Stack(folder / "follow", ends, VALIDATOR_DELAY_MS=delay, WAITS=str(sum(sizes.following)))
        found["half"] = half_heads(stack, sizes.half)
        found["follow"] = {
            count: reach(stack, count, sizes.events) for count in sizes.following if count <= most
        }
    return found
