"""The load generator: kept-alive HTTP/1.1 connections on one epoll loop, every answer's status checked.

It shares the machine with what it measures, so it does little: requests are bytes that were made before, and an answer
is read just far enough to know its status, its length and the id at its start.
"""

import gc
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
SILENCE = 30  # seconds without any answer, after which the run is given up
SECOND = 1_000_000_000  # the unit here is the nanosecond of the monotonic clock


class WrongAnswer(Exception):
    """An answer had another status than the expected one, or there was none."""


class Sample(NamedTuple):
    """For each answer, in the order they came: when its request was due, when it was complete, the id in it."""

    due: list[int]
    done: list[int]
    ids: list[bytes]

    def milliseconds(self) -> list[float]:
        """How long each took."""
        return [(done - due) / 1e6 for due, done in zip(self.due, self.done, strict=True)]


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP/1.1 request as it goes over the wire."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: bench",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def drive(
    port: int,
    requests: Iterator[bytes],
    clients: int,
    seconds: float,
    rate: float | None = None,
    status: int = 201,
    most: int | None = None,
) -> Sample:
    """Send requests for so many seconds, `most` at most, and wait for the last answer; raises WrongAnswer, OSError.

    Without a `rate` each client sends its next request once it has its answer. With one, a request is due every
    1/`rate` seconds whatever became of those before, and its time counts from then, also while every connection is
    busy: a service that stalls is not spared the requests that would have come meanwhile.
    """
    expected = f"HTTP/1.1 {status} ".encode()
    due, done, ids = sample = Sample([], [], [])
    received, started = {}, {}
    gc.disable()
    with ExitStack() as ends:
        ends.callback(gc.enable)
        epoll = ends.enter_context(select.epoll())
        sockets = {}
        for _ in range(clients):
            connection = ends.enter_context(socket.create_connection(("127.0.0.1", port), SILENCE))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            epoll.register(connection, select.EPOLLIN)
            sockets[connection.fileno()] = connection
        idle = deque(sockets)
        now = began = time.monotonic_ns()
        end, interval, sent = began + int(seconds * SECOND), SECOND / rate if rate else 0, 0
        while True:
            turn = began + int(sent * interval) if rate else now
            while idle and turn <= now and turn < end and sent != most:
                number = idle.popleft()
                started[number] = turn if rate else time.monotonic_ns()
                sockets[number].sendall(next(requests))
                sent += 1
                turn = began + int(sent * interval) if rate else now
            over = turn >= end or sent == most
            if over and not started:
                return sample
            if idle and not over:
                # epoll counts in milliseconds, which is too coarse for the next turn.
                select.select([epoll], (), (), max(0, turn - time.monotonic_ns()) / SECOND)
                events = epoll.poll(0)
            elif not (events := epoll.poll(SILENCE)):
                raise WrongAnswer(f"no answer for {SILENCE} seconds")
            for number, _ in events:
                piece = sockets[number].recv(65536)
                data = received.pop(number, b"") + piece
                head, complete, body = data.partition(b"\r\n\r\n")
                if piece and not (complete and len(body) >= int(LENGTH.search(head)[1])):
                    received[number] = data
                    continue
                if not head.startswith(expected):
                    raise WrongAnswer(data.decode(errors="replace") or "the connection was closed")
                due.append(started.pop(number))
                done.append(time.monotonic_ns())
                ids.append(body[7:43])  # {"id":"…
                idle.append(number)
            now = time.monotonic_ns()
