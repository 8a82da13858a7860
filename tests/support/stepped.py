"""A ledger without its thread: tests call it step by step, with their own clock."""

from concurrent.futures import ThreadPoolExecutor

from uuid_utils.compat import uuid7

import models
import storage
from jobs import Creation, Verdict
from ledger import Ledger
from models import SECOND, Order
from programs import wait_until
from schemas import Status
from settings import Settings


class Clock:
    """A clock that only moves when a test moves it."""

    now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class Wire:
    """Takes the listener's place and records what the ledger publishes."""

    alive = True

    def __init__(self):
        self.published = []

    def publish(self, questions) -> None:
        self.published += [question.transaction_id for question in questions]


class Bench:
    """A ledger without its thread, and what tests do with it."""

    def __init__(self, settings: Settings):
        self.settings, self.clock, self.wire = settings, Clock(), Wire()
        self.pool = ThreadPoolExecutor(64)
        storage.migrate()
        models.create_station("Teste")
        self.restart()

    def restart(self) -> None:
        self.ledger = Ledger()
        self.ledger.prepare(self.settings, self.wire, self.clock)
        self.subscribe()

    def subscribe(self, subscribed: bool = True) -> None:
        self.ledger.subscribed = subscribed
        if subscribed:
            self.ledger.rearm()
            self.step()

    def step(self, seconds: float = 0) -> None:
        self.clock.advance(seconds)
        self.ledger.step(0)

    def run(self, function, *arguments):
        """Call a function in a thread that then closes its connection; returns a future."""

        def call():
            try:
                return function(*arguments)
            finally:
                storage.close()

        return self.pool.submit(call)

    def submit(self, function, *arguments):
        """Call a function that waits for the ledger, in a thread.

        Returns a future when the job is in the queue.
        """
        before = self.ledger._queue.qsize()
        future = self.run(function, *arguments)
        wait_until(lambda: self.ledger._queue.qsize() > before or future.done(), "the job is in the queue")
        return future

    def create(self, count: int = 1, key: str | None = None) -> list:
        """Create `count` transactions in one batch; returns their ids."""
        futures = [self.submit(self.ledger.create, 1, key) for _ in range(count)]
        self.step()
        return [future.result(1).id for future in futures]

    def store(self, count: int) -> list:
        """Do the same for large numbers, without a thread for each."""
        jobs = [Creation(Order(uuid7(), 1, None)) for _ in range(count)]
        for job in jobs:
            self.ledger._queue.put(job)
        while not self.ledger._queue.empty():
            self.step()
        return [job.result(0).id for job in jobs]

    def answer(self, key, status=Status.COMPLETED) -> list:
        """Hand in a verdict; the returned list gets one item when it is acknowledged."""
        acknowledged = []
        self.ledger.settle(Verdict(key, status, lambda: acknowledged.append(True)))
        return acknowledged

    def status(self, key) -> Status:
        return models.get_transaction(key).status
