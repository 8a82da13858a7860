"""A ledger without its thread: tests call it step by step, with their own clock."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor

import models
from batch import ask_again, create, settle
from calls import looping
from kit.clock import SECOND
from kit.settings import Settings
from kit.storage import Store
from ledger import Draft, Job, JobQueue, Ledger
from programs import MIGRATIONS, wait_until
from schemas import Status, Verdict


class Clock:
    """Two clocks that move when they are told to."""

    def __init__(self):
        self.now = self.wall_now = 1_800_000_000 * SECOND

    def wall(self) -> int:
        return self.wall_now

    def steady(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.wall_now += int(seconds * SECOND)


class Publisher:
    """What the ledger is handed for MQTT: it keeps what it was asked to publish."""

    alive = True
    subscribed = False
    unreadable = 0
    session = 1

    def __init__(self):
        self.published, self.holds = [], []

    def publish(self, questions) -> None:
        self.published += [question.transaction_id for question, _ in questions]

    def held(self, seconds) -> list:
        return self.holds

    def watch(self) -> None:
        pass


def ledger(settings: Settings, loop, publisher=None, clock=None, kind=Ledger) -> Ledger:
    """A ledger on its own database and queue, not started."""
    store = Store(settings.database_url, 80, MIGRATIONS, models.TABLES, clock)
    return kind(settings, store, JobQueue(), publisher or Publisher(), loop)


class Bench:
    """A ledger without its thread, and what tests do with it."""

    kind = Ledger

    def __init__(self, settings: Settings):
        self.settings, self.clock, self.publisher = settings, Clock(), Publisher()
        self.ledger = None
        self.pool = ThreadPoolExecutor(64)
        self._looping = looping()
        self.loop = self._looping.__enter__()
        self.restart()
        models.create_station(self.database, "Teste")

    @property
    def database(self):
        return self.ledger.store.database

    def restart(self) -> None:
        """A process starts: nothing in its queue, and no connection."""
        self.stop()
        self.ledger = ledger(self.settings, self.loop, self.publisher, self.clock, self.kind)
        self.step()
        self.subscribe()

    def stop(self) -> None:
        """A process ends."""
        self.publisher.subscribed = False
        if self.ledger:
            self.ledger.store.close()

    def subscribe(self, subscribed: bool = True) -> None:
        """What the listener does when its subscription is acknowledged, or when the connection is lost."""
        self.publisher.subscribed = subscribed
        if subscribed:
            self.put(Job(ask_again, True))
            self.step()

    def step(self, seconds: float = 0) -> None:
        self.clock.advance(seconds)
        self.ledger.step(0)

    def put(self, job: Job) -> Job:
        self.ledger.queue.put(job)
        return job

    def run(self, function, *arguments):
        """A future of a call in the loop, or in a thread that gives its connection back."""
        if inspect.iscoroutinefunction(function):
            return asyncio.run_coroutine_threadsafe(function(*arguments), self.loop)

        def call():
            try:
                return function(*arguments)
            finally:
                self.database.close()

        return self.pool.submit(call)

    def submit(self, function, *arguments):
        """Call a function that waits for the ledger, in a thread.

        Returns a future when the job is in the queue.
        """
        before = self.ledger.queue.qsize()
        future = self.run(function, *arguments)
        wait_until(lambda: self.ledger.queue.qsize() > before or future.done(), "the job is in the queue")
        return future

    def create(self, count: int = 1, key: str | None = None) -> list:
        """Create `count` transactions in one batch; returns their ids."""
        futures = [self.submit(self.ledger.create, Draft(1, key)) for _ in range(count)]
        self.step()
        return [future.result(1).id for future in futures]

    def store(self, count: int) -> list:
        """The same for large numbers, straight into the queue."""
        jobs = [self.put(Job(create, Draft(1))) for _ in range(count)]
        while not self.ledger.queue.empty():
            self.step()
        return [job.result.id for job in jobs]

    def answer(self, key, status="COMPLETED") -> list:
        """Hand in a verdict; the list has one item once it was acknowledged."""
        acknowledged = []
        self.put(Job(settle, Verdict(key, status), lambda _: acknowledged.append(True)))
        return acknowledged

    def status(self, key) -> Status:
        return models.get_transaction(self.database, key).status

    def list(self, limit: int = 10_000) -> list:
        return models.list_transactions(self.database, limit)

    def close(self) -> None:
        self.pool.shutdown()
        self._looping.__exit__(None, None, None)
        self.ledger.store.close()
