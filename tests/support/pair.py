"""A ledger and a listener that run in the test's process, with their own database."""

from uuid import UUID

import models
import storage
from ledger import Ledger
from mqtt_listener import Listener
from programs import ACCOUNTS, wait_until
from schemas import Status
from settings import Settings


class Pair:
    """Both start when this object is made; `clock` is the ledger's clock."""

    def __init__(self, folder, port: int, clock=None, **options):
        accounts = {name.lower(): value for name, value in ACCOUNTS.items() if name.startswith("MQTT")}
        url = f"sqlite:///{folder}/energy2go.db"
        options = {"validation_retry": 1} | accounts | options
        self.settings = Settings(database_url=url, mqtt_port=port, **options)
        self.ledger = Ledger()
        self.listener = Listener(self.ledger)
        storage.bind(url)
        self.ledger.start(self.settings, self.listener, clock)
        self.listener.start(self.settings)
        self.ledger.change(models.create_station, "Teste")

    def create(self) -> UUID:
        return self.ledger.create(1, None).id

    @property
    def asked(self) -> int:
        """The number of published questions."""
        return self.ledger.counts["asked"] + self.ledger.counts["asked again"]

    def ready(self) -> None:
        wait_until(lambda: not self.listener.trouble, "the listener is ready", 30)

    def says(self, *words: str, seconds: float = 15) -> None:
        wait_until(lambda: all(word in self.listener.trouble for word in words), f"it says {words}", seconds)

    def settled(self, key: UUID, status: Status = Status.COMPLETED, seconds: float = 15) -> None:
        wait_until(lambda: models.get_transaction(key).status is status, f"{key} is {status}", seconds)

    def stop(self) -> None:
        self.listener.stop()
        self.ledger.stop()
        storage.close()
