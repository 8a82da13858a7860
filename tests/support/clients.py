"""The load generator: keep-alive HTTP/1.1 connections in one epoll loop. It checks every status.

It shares the machine with the programs that it measures, so it does little: requests are prepared bytes, and
it reads from an answer only the status, the length and the id.
"""

import contextlib
import gc
import re
import select
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
SILENCE = 30  # seconds without any answer, after which the run fails
SECOND = 1_000_000_000  # times here are nanoseconds of the monotonic clock


class WrongAnswer(Exception):
    """An answer had an unexpected status, or none came."""


class Sample(NamedTuple):
    """For each answer, in order of arrival: when its request was sent, when it was complete, and its id."""

    sent: list[int]
    done: list[int]
    ids: list[bytes]

    def milliseconds(self) -> list[float]:
        """The time of each request, in milliseconds."""
        return [(done - sent) / 1e6 for sent, done in zip(self.sent, self.done, strict=True)]


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP/1.1 request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{k}: {v}" for k, v in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def drive(port: int, requests: Iterator[bytes], clients: int, seconds: float, status: int = 201) -> Sample:
    """Let each client send its next request when it has its answer; raises WrongAnswer, OSError."""
    expected, sample = f"HTTP/1.1 {status} ".encode(), Sample([], [], [])
    sockets, sent, received = dict[int, socket.socket](), dict[int, int](), dict[int, bytes]()
    with contextlib.ExitStack() as ends, select.epoll() as poller:
        for _ in range(clients):
            connection = ends.enter_context(socket.create_connection(("127.0.0.1", port), SILENCE))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poller.register(connection, select.EPOLLIN)
            sockets[connection.fileno()] = connection
        gc.disable()
        ends.callback(gc.enable)
        end = time.monotonic_ns() + int(seconds * SECOND)
        for number, connection in sockets.items():
            sent[number] = time.monotonic_ns()
            connection.sendall(next(requests))
        while sent:
            if not (events := poller.poll(SILENCE)):
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
                now = time.monotonic_ns()
                sample.sent.append(sent.pop(number))
                sample.done.append(now)
                sample.ids.append(body[7:43])  # {"id":"…
                if now < end:
                    sent[number] = now
                    sockets[number].sendall(next(requests))
    return sample
