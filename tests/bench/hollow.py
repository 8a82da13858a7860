"""The service's own routes over a ledger that stores and asks nothing: the limit of these libraries."""

import time

from kit.writer import JobQueue

import models
from app import app
from bare import NOW
from kit.clock import uuid7
from kit.settings import load
from kit.storage import Store
from ledger import Ledger
from schemas import Station, Status, Transaction

COMMIT = 0.0007  # seconds; a commit takes this long on a good disk


class NoListener:
    """Takes the listener's place."""

    alive, subscribed, unreadable, session = True, False, 0, 0

    def publish(self, questions):
        pass

    def held(self, seconds):
        return []

    def watch(self):
        pass


class Hollow(Ledger):
    """Hands each request to its thread and back, as the real ledger does."""

    def _write(self, jobs):
        time.sleep(COMMIT)
        for counter, job in enumerate(job for job in jobs if job.item):
            draft, rest = job.item, (Status.PENDING, NOW, NOW, 0, None, None)
            draft.id = uuid7(self.clock.wall(), counter)
            job.finish(Transaction(draft.id, Station(draft.station_id, "Teste"), *rest))


class Service:
    """What the routes need to create a transaction."""

    def __init__(self, settings):
        store = Store(settings.database_url, 1, "migrations", models.TABLES)
        store.problem = ""  # it can be "written", so the ledger never opens it
        self.ledger = Hollow(settings, store, JobQueue(), NoListener())


def start():
    """Start the service; the worker calls this when it is on its processor."""
    service = Service(load())
    service.ledger.__enter__()
    app.use(service)
