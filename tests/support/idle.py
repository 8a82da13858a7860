"""Clients that open connections to a service and then do next to nothing."""

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


def half_a_body(crowd: Crowd) -> None:
    """1,000 clients send half a body"""
    crowd.open(1000, POST + b"Content-Length: 50\r\n\r\n{")


def everybody(crowd: Crowd) -> None:
    """2,800 clients send half a head, nothing, one request, or nonsense, and stay"""
    crowd.open(200, POST)
    crowd.open(1000)
    crowd.open(1000, KEPT, b"200 ")
    crowd.open(300, KEPT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"200 ")
    crowd.open(300, b"nonsense\r\n\r\n", b"400 ")
