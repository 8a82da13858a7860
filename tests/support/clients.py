"""The load generator: keep-alive HTTP/1.1 connections in one epoll loop. It checks every status.

It shares the machine with the programs that it measures, so it does little: requests are prepared bytes, and
it reads from an answer only the status, the length and the id.
"""

import gc
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Self

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
SILENCE = 30  # seconds without any answer, after which the run fails
SECOND = 1_000_000_000  # times here are nanoseconds of the monotonic clock


class WrongAnswer(Exception):
    """An answer had an unexpected status, or none came."""


class Sample(NamedTuple):
    """For each answer, in order of arrival: when its request was due, when it was complete, and its id."""

    due: list[int]
    done: list[int]
    ids: list[bytes]

    def milliseconds(self) -> list[float]:
        """The time of each request, in milliseconds."""
        return [(done - due) / 1e6 for due, done in zip(self.due, self.done, strict=True)]


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP/1.1 request as bytes."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: bench",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connections:
    """Keep-alive connections, each with at most one request on its way."""

    def __init__(self, port: int, clients: int, status: int):
        self.expected = f"HTTP/1.1 {status} ".encode()
        self.sample = Sample([], [], [])
        self.epoll = select.epoll()
        made = [socket.create_connection(("127.0.0.1", port), SILENCE) for _ in range(clients)]
        self.sockets = {connection.fileno(): connection for connection in made}
        self.idle = deque(self.sockets)
        self.due: dict[int, int] = {}  # of the requests on their way
        self.received: dict[int, bytes] = {}  # the beginnings of answers

    def __enter__(self) -> Self:
        gc.disable()
        for number, connection in self.sockets.items():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.epoll.register(number, select.EPOLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()
        for closable in (self.epoll, *self.sockets.values()):
            closable.close()

    def send(self, request: bytes, due: int) -> None:
        """Send a request on an idle connection."""
        number = self.idle.popleft()
        self.due[number] = due
        self.sockets[number].sendall(request)

    def receive(self, until: int | None) -> None:
        """Wait for answers, but only until it is time for the next request; raises WrongAnswer."""
        if until is not None:
            # epoll counts in milliseconds, which is too coarse for the next request.
            select.select([self.epoll], (), (), max(0, until - time.monotonic_ns()) / SECOND)
            events = self.epoll.poll(0)
        elif not (events := self.epoll.poll(SILENCE)):
            raise WrongAnswer(f"no answer for {SILENCE} seconds")
        for number, _ in events:
            self._read(number)

    def _read(self, number: int) -> None:
        piece = self.sockets[number].recv(65536)
        data = self.received.pop(number, b"") + piece
        head, complete, body = data.partition(b"\r\n\r\n")
        if piece and not (complete and len(body) >= int(LENGTH.search(head)[1])):
            self.received[number] = data
            return
        if not head.startswith(self.expected):
            raise WrongAnswer(data.decode(errors="replace") or "the connection was closed")
        self.sample.due.append(self.due.pop(number))
        self.sample.done.append(time.monotonic_ns())
        self.sample.ids.append(body[7:43])  # {"id":"…
        self.idle.append(number)


def drive(
    port: int,
    requests: Iterator[bytes],
    clients: int,
    seconds: float,
    rate: float | None = None,
    status: int = 201,
) -> Sample:
    """Send requests for `seconds`, and wait for the last answer; raises WrongAnswer, OSError.

    Without a `rate`, each client sends its next request when it has its answer. With a `rate`, a request is
    due every 1/`rate` seconds, and its time counts from then, even while every connection is busy. So a
    service that stalls is charged for the requests that it delayed (no coordinated omission).
    """
    with Connections(port, clients, status) as connections:
        now = began = time.monotonic_ns()
        end, interval, sent = began + int(seconds * SECOND), SECOND / rate if rate else 0, 0
        while True:
            turn = began + int(sent * interval) if rate else now
            while connections.idle and turn <= now and turn < end:
                connections.send(next(requests), turn if rate else time.monotonic_ns())
                sent += 1
                turn = began + int(sent * interval) if rate else now
            over = turn >= end
            if over and not connections.due:
                return connections.sample
            connections.receive(turn if connections.idle and not over else None)
            now = time.monotonic_ns()
