"""A ledger without its thread: tests call it step by step, in one thread and with their own clock."""

import asyncio
from types import SimpleNamespace

import models
from batch import create, settle
from kit.clock import SECOND
from kit.settings import Settings
from kit.storage import Store
from ledger import Draft, Job, JobQueue, Ledger
from programs import MIGRATIONS
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


def ledger(settings: Settings, loop, clock=None, subscribed: bool = False) -> Ledger:
    """A ledger on its own database and queue, not started. No equipment gets its questions."""
    nothing = {"publish": lambda _: None, "held": lambda _: [], "watch": lambda: None}
    listener = SimpleNamespace(alive=True, subscribed=subscribed, session=1, unreadable=0, **nothing)
    store = Store(settings.database_url, 8, MIGRATIONS, clock)
    return Ledger(settings, store, JobQueue(), listener, loop)


class Bench:
    """A ledger without its thread, and what tests do with it."""

    def __init__(self, **settings):
        self.clock, self.loop = Clock(), asyncio.new_event_loop()
        self.ledger = ledger(Settings(**settings), self.loop, self.clock, subscribed=True)
        self.step()
        self.database = self.ledger.store.database
        models.create_station(self.database, "Teste")

    def step(self, seconds: float = 0) -> None:
        self.clock.advance(seconds)
        self.ledger.step(0)

    def put(self, function, item, then=None) -> Job:
        self.ledger.queue.put(job := Job(function, item, then))
        return job

    def submit(self, coroutine) -> asyncio.Task:
        """A request that waits for the ledger: its job is in the queue."""
        task = self.loop.create_task(coroutine)
        self.loop.run_until_complete(asyncio.sleep(0))
        return task

    def result(self, task: asyncio.Task):
        return self.loop.run_until_complete(task)

    def create(self, count: int = 1, key: str | None = None) -> list:
        """Create `count` transactions; returns their ids."""
        jobs = [self.put(create, Draft(1, key)) for _ in range(count)]
        while not self.ledger.queue.empty():
            self.step()
        return [job.result.id for job in jobs]

    def answer(self, key, status="COMPLETED") -> list:
        """Hand in a verdict; the list has one item once it was acknowledged."""
        acknowledged = []
        self.put(settle, Verdict(key, status), lambda _: acknowledged.append(True))
        return acknowledged

    def status(self, key) -> Status:
        return models.get_transaction(self.database, key).status

    def list(self, limit: int = 10_000) -> list:
        return models.list_transactions(self.database, limit)

    def close(self) -> None:
        self.ledger.store.close()
        self.loop.close()
