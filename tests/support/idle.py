"""Clients that open connections to a service and then do next to nothing."""

from collections.abc import Callable
from contextlib import ExitStack

from programs import Service
from raw import POST, answer, connect

KEPT = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
FOLLOW = KEPT.replace(b"/healthz", b"/events")
WAIT = POST.replace(b"stations", b"transactions") + b"Prefer: wait=20\r\n"
WAIT += b'Content-Length: 17\r\n\r\n{"station_id": 1}'


class Crowd:
    """Connections that stay open until the `with` ends."""

    def __init__(self, service: Service):
        self.service, self._ends = service, ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._ends.close()

    def open(self, count: int, data: bytes = b"", expected: bytes = b"") -> list:
        """Open so many, send the same over each, and wait for an answer if one is expected."""
        opened = []
        for _ in range(count):
            opened.append(self._ends.enter_context(connect(self.service.port)))
            if data:
                opened[-1].sendall(data)
            if expected:
                assert answer(opened[-1]).startswith(b"HTTP/1.1 " + expected)
        return opened


def idle(crowd: Crowd) -> None:
    """1,000 clients ask once and keep their connection"""
    crowd.open(1000, KEPT, b"200 ")


def silent(crowd: Crowd) -> None:
    """1,000 clients connect and send nothing"""
    crowd.open(1000)


def half_a_head(crowd: Crowd) -> None:
    """200 clients send half a head"""
    crowd.open(200, POST)


def half_a_body(crowd: Crowd) -> None:
    """1,000 clients send half a body"""
    crowd.open(1000, POST + b"Content-Length: 50\r\n\r\n{")


def not_closed(crowd: Crowd) -> None:
    """300 clients do not close their side"""
    crowd.open(300, KEPT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"200 ")


def refused(crowd: Crowd) -> None:
    """300 clients send nonsense and stay"""
    crowd.open(300, b"nonsense\r\n\r\n", b"400 ")


def everybody(crowd: Crowd) -> None:
    """2,800 clients of all these kinds"""
    for some in (half_a_head, silent, idle, not_closed, refused):
        some(crowd)


# What a trial's row says is the docstring.
CROWDS: list[Callable[[Crowd], None]] = [idle, silent, half_a_head, not_closed, refused, everybody]
