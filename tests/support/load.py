"""Clients that post transactions, each over one connection, and record the answers."""

import http.client
import json
import threading
from collections import Counter
from itertools import count
from uuid import uuid4

from ledger import UNKNOWN
from programs import Service, wait_until


class Load:
    """Clients that post until they are stopped.

    `accepted`: ids that came with a 201. `refused`: keys of requests that got another status. `broken`: keys
    of requests that got no answer, so their outcome is unknown. `statuses`: how often each status came.
    """

    def __init__(
        self,
        service: Service,
        clients: int = 8,
        total: int | None = None,
        pause: float = 0,
        keep_alive: bool = True,
        station: int = 1,
        **headers: str,
    ):
        self.service, self.pause, self.keep_alive = service, pause, keep_alive
        self.body = json.dumps({"station_id": station})
        self.headers = {"Content-Type": "application/json"} | headers
        self.accepted, self.refused, self.statuses = [], [], Counter()
        self.unknown, self.broken = [], []  # these may be stored: a 503 that says so, and no answer
        self.said: dict[str, str] = {}  # the answers that are no success, by key
        self._numbers = iter(range(total)) if total else count()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.may_post = threading.Event()  # clear it, and the clients pause
        self.may_post.set()
        self._threads = [threading.Thread(target=self._post, daemon=True) for _ in range(clients)]

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def join(self, seconds: float = 300) -> None:
        """Wait until all transactions are posted."""
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a client hangs"

    def stop(self) -> None:
        """Stop posting, and wait for the open requests."""
        self._stop.set()
        self.may_post.set()
        self.join()

    def more(self, count: int = 30) -> None:
        """Wait until `count` more are accepted."""
        goal = len(self.accepted) + count
        wait_until(lambda: len(self.accepted) >= goal, f"{count} more are accepted")

    def refused_more(self, count: int) -> None:
        """Wait until `count` more requests are answered with 503."""
        goal = self.statuses[503] + count
        wait_until(lambda: self.statuses[503] >= goal, "requests are refused")

    def _post(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=60)
        while not self._stop.wait(self.pause) and self.may_post.wait():
            with self._lock:
                if next(self._numbers, None) is None:
                    break
            key = str(uuid4())
            headers = self.headers | {"Idempotency-Key": key}
            headers |= {} if self.keep_alive else {"Connection": "close"}
            try:
                connection.request("POST", "/transactions", self.body, headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.broken.append(key)
                self._stop.wait(0.05)
                continue
            self.statuses[answer.status] += 1
            if answer.status in (200, 201):  # 200: a proxy has sent it twice
                self.accepted.append(json.loads(body)["id"])
            else:
                self.said[key] = f"{answer.status} {body.decode()}"
                (self.unknown if UNKNOWN in body.decode() else self.refused).append(key)
        connection.close()
