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
from contextlib import ExitStack
from typing import NamedTuple

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


def drive(
    port: int,
    requests: Iterator[bytes],
    clients: int,
    seconds: float,
    rate: float | None = None,
    status: int = 201,
    most: int | None = None,
) -> Sample:
    """Send at most `most` requests in `seconds`, and wait for the last answer; raises WrongAnswer, OSError.

    Without a `rate`, each client sends its next request when it has its answer. With a `rate`, a request is
    due every 1/`rate` seconds, and its time counts from then, even while every connection is busy. So a
    service that stalls is charged for the requests that it delayed (no coordinated omission).
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
                # epoll counts in milliseconds, which is too coarse for the next request.
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
