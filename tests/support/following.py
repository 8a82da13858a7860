"""Clients that follow events, and what they must have been told."""

import http.client
import json
import threading

from programs import HttpServer

# Texts that aren't the id of an event
ZEROS = "0" * 31
BAD = ["", " ", "x", "1-0", "9" * 5000, "019d31b4-7c5a-7e1f-9a40-6f2d8c1b3e57"]
BAD += [f"1-{ZEROS}1\n", f"1-{ZEROS}A", *(f"{time}-{ZEROS}1" for time in ("-1", "1.0", 2**63, "\u0661"))]


def fields(chunk: bytes) -> list[dict[str, str]]:
    """The events in a chunk, as a client reads them. Each has a name and data."""
    blocks = chunk.decode().removesuffix("\n\n").split("\n\n")
    found = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    assert all({"event", "data"} <= event.keys() for event in found), chunk
    return found


class Follower:
    """A client that follows until it is stopped. If its stream ends, it comes back and goes on.

    `told` are the transactions, each with its event's id; `began` is how the last stream began, `readiness`
    what it heard last. `streams` counts the streams that began, `ended` those that ended as HTTP says, and
    `broken` those that broke off or did not begin.
    """

    def __init__(self, server: HttpServer, cursor: str = "", path: str = "/events", again: bool = True):
        self.server, self.cursor, self.path, self.again = server, cursor, path, again
        self.told: list[tuple[str, dict]] = []
        self.began, self.readiness = "", dict[str, object]()
        self.streams = self.ended = self.broken = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Leave with the next event, without waiting for it."""
        self._stop.set()

    def last(self) -> dict[str, str]:
        """The last status of each transaction that it was told of."""
        return {told["id"]: told["status"] for _, told in list(self.told)}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
                self.ended += 1
            except (OSError, http.client.HTTPException, ValueError):
                self.broken += 1
                self._stop.wait(0.05)
            if not self.again:
                return

    def _follow(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(
                "GET", self.path, headers={"Last-Event-ID": self.cursor} if self.cursor else {}
            )
            answer = connection.getresponse()
            if answer.status != 200:
                answer.read()
                raise ValueError(answer.status)
            self.streams += 1
            block = b""
            while line := answer.readline():
                block += line
                if line == b"\n":
                    self._take(block)
                    block = b""
                if self._stop.is_set():
                    return
        finally:
            connection.close()

    def _take(self, block: bytes) -> None:
        for event in fields(block):
            if event["event"] == "transaction":
                self.told.append((event["id"], json.loads(event["data"])))
            elif event["event"] == "ready":
                self.readiness = json.loads(event["data"])
            elif event["event"] in ("begin", "reset"):
                self.began = event["event"]
            self.cursor = event.get("id", self.cursor)


def assert_complete(follower: Follower, stored: dict[str, str]) -> None:
    """Check that a client was told the last status of each of these, in order and nothing twice."""
    assert stored.items() <= follower.last().items()
    ids = [cursor for cursor, _ in follower.told]
    assert len(ids) == len(set(ids))
    changes = [(told["updated"], told["id"]) for _, told in follower.told]
    assert changes == sorted(changes)
    assert len(changes) == len(set(changes))
