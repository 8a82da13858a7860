"""A ledger and a listener that run in the test's process, with their own database."""

import asyncio
from contextlib import ExitStack
from uuid import UUID

import models
from batch import create
from calls import looping
from kit.settings import Settings
from kit.storage import Store, execute
from ledger import Draft, Job, JobQueue, Ledger
from mqtt_listener import Listener
from programs import ACCOUNTS, MIGRATIONS, wait_until
from schemas import Status


class Pair:
    """Both start when this object is made; `clock` is for both. If not `patient`, it reconnects at once."""

    def __init__(self, folder, port: int, clock=None, patient=True, **options):
        accounts = {name.lower(): value for name, value in ACCOUNTS.items() if name.startswith("MQTT")}
        url = f"sqlite:///{folder}/energy2go.db"
        options = {"validation_retry": 1} | accounts | options
        self.settings = Settings(database_url=url, mqtt_port=port, **options)
        self.store, queue = Store(url, 20, MIGRATIONS, clock), JobQueue()
        self.listener = Listener(self.settings, queue.put, self.store.clock)
        if not patient:
            self.listener._client.reconnect_delay_set(0.01, 0.02)
            self.listener._client.reconnect_delay_set = lambda *_: None
        self.unheard: list[str] = []  # sentences since the last one that `says` or `ready` waited for
        say = self.listener._report
        self.listener._report = lambda sentence: (self.unheard.append(sentence), say(sentence))
        self.started = ExitStack()
        self.loop = self.started.enter_context(looping())
        self.ledger = Ledger(self.settings, self.store, queue, self.listener, self.loop)
        self.started.enter_context(self.ledger)
        self.started.enter_context(self.listener)
        wait_until(lambda: not self.ledger.store.problem, "the database is open")
        self.run(self.ledger.change, models.create_station, "Teste")

    def create(self) -> UUID:
        return self.run(self.ledger.create, Draft(1)).id

    def run(self, function, *values):
        """What a function of the ledger returns that is awaited."""
        return asyncio.run_coroutine_threadsafe(function(*values), self.loop).result(30)

    def create_later(self) -> None:
        """Hand in a transaction, and do not wait until it is stored."""
        self.ledger.queue.put(Job(create, Draft(1)))

    def ready(self) -> None:
        wait_until(lambda: not self.listener.problem, "the listener is ready")
        self.unheard.clear()

    def says(self, *words: str) -> None:
        """Wait until it says all of this, or has said it in the meantime: a sentence may last only 0.1 s."""

        def heard() -> bool:
            said = [*self.unheard, self.listener.problem]
            return any(all(word in sentence for word in words) for sentence in said)

        wait_until(heard, f"it says {words}, but {self.unheard}")
        self.unheard.clear()

    def status(self, key: UUID) -> Status:
        return self.store.read(models.get_transaction, key).status

    def count(self, status: str) -> int:
        """How many transactions have this status."""
        statement = 'SELECT count(*) FROM "transaction" WHERE status = ?'
        return self.store.read(execute, statement, status)[0][0]

    def settled(self, key: UUID, status: Status = Status.COMPLETED) -> None:
        wait_until(lambda: self.status(key) is status, f"{key} is {status}")

    def stop(self) -> None:
        self.started.close()
        self.store.close()
