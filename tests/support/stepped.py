"""A ledger that a test calls step by step, with a clock of its own."""

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
    """A clock that moves when it is told to."""

    now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class Wire:
    """What the ledger is handed for MQTT: it keeps what it was asked to publish."""

    alive = True

    def __init__(self):
        self.published = []

    def publish(self, questions) -> None:
        self.published += [question.transaction_id for question in questions]


class Bench:
    """A ledger without its thread, and what a test does with it."""

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
        """Call something in a thread, which closes its connection afterwards; its future."""

        def call():
            try:
                return function(*arguments)
            finally:
                storage.close()

        return self.pool.submit(call)

    def submit(self, function, *arguments):
        """Call something that waits for the ledger, in a thread; returns when its job is in the queue."""
        before = self.ledger._queue.qsize()
        future = self.run(function, *arguments)
        wait_until(lambda: self.ledger._queue.qsize() > before or future.done(), "the job is in the queue")
        return future

    def create(self, count: int = 1, key: str | None = None) -> list:
        """So many transactions, in one batch; their ids."""
        futures = [self.submit(self.ledger.create, 1, key) for _ in range(count)]
        self.step()
        return [future.result(1).id for future in futures]

    def store(self, count: int) -> list:
        """The same for large numbers, straight into the queue."""
        jobs = [Creation(Order(uuid7(), 1, None)) for _ in range(count)]
        for job in jobs:
            self.ledger._queue.put(job)
        while not self.ledger._queue.empty():
            self.step()
        return [job.result(0).id for job in jobs]

    def answer(self, key, status=Status.COMPLETED) -> list:
        """Hand in a verdict; the list has one item once it was acknowledged."""
        acknowledged = []
        self.ledger.settle(Verdict(key, status, lambda: acknowledged.append(True)))
        return acknowledged

    def status(self, key) -> Status:
        return models.get_transaction(key).status
