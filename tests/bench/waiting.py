"""What others notice of 1,000 clients that wait, 200 that send half a head, and 100 that follow events."""

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
from uuid import UUID

from clients import drive, request
from idle import WAIT, Crowd
from programs import wait_until
from raw import POST as HALF_A_HEAD
from raw import answer, connect
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
        with Followers(stack.port, FOLLOWING) as followers:
            since = time.time_ns() // 1000
            followed = measure(phase, stack)["settled/s"]
            wanted = {str(UUID(key)).encode() for key in stack.rows(since)}
            with contextlib.suppress(AssertionError):
                wait_until(lambda: followers.told(wanted) == FOLLOWING, "all were told", 10)
            found["told"] = followers.told(wanted)
        found["followed"], found["followed ÷ alone"] = followed, followed / alone
    return found


class Followers:
    """Clients that follow while this is entered. One thread reads for all of them and parses nothing."""

    def __init__(self, port: int, count: int):
        self._ends, self._stop, self._poller = contextlib.ExitStack(), False, select.epoll()
        self._clients = {client.fileno(): client for client in (self._open(port) for _ in range(count))}
        self._received = {number: bytearray() for number in self._clients}
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

    def told(self, wanted: set[bytes]) -> int:
        """How many clients were told a verdict for each of these ids."""
        verdict = re.compile(rb'"id":"([^"]{36})","station":[^}]*},"status":"(?:COMPLETED|ERROR)"')
        return sum(wanted <= set(verdict.findall(bytes(data))) for data in self._received.values())


def crowds(folder: Path) -> dict:
    """All of it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return waits(folder / "waits") | heads_and_followers(folder / "heads")
