"""Several services on one PostgreSQL and one broker, with a load on each."""

from collections import Counter
from pathlib import Path

from load import Load
from postgres import Postgres
from programs import Broker, Equipment, Program, Service, listening, wait_until
from trial import RETRY, SETTLED_WITHIN, compare


class Replicas:
    """A broker, equipment, services on one database, and a load on each service."""

    def __init__(self, folder: Path, programs: list, postgres: Postgres, count: int, **options):
        self.postgres, self.database = postgres, postgres.fresh().rpartition("/")[2]
        self.broker = Broker(folder)
        self.equipment = Equipment(folder, self.broker)
        options = {"DATABASE_URL": postgres.url(self.database), "VALIDATION_RETRY": str(RETRY)} | options
        names = [f"replica-{number}" for number in range(count)]
        self.services = [Service(folder, self.broker, name=name, **options) for name in names]
        self.loads = []
        programs += [self.broker, self.equipment, *self.services]

    def start(self, equipment: bool = True, cut_off: int = 0):
        """Start everything, the services all at once. The first `cut_off` services have no broker."""
        self.broker.start()
        if equipment:
            self.equipment.start()
        for service in self.services:
            Program.start(service)
        for service in self.services[:cut_off]:
            wait_until(lambda: listening(service.port), "it listens")  # noqa: B023
        for service in self.services[cut_off:]:
            wait_until(service.ready, "a replica is ready")
        self.services[-1].post("/stations", {"description": "Teste"})
        return self

    def load(self, **options) -> None:
        """Start a load on each service."""
        self.loads = [
            Load(service, **{"clients": 4, "pause": 0.02} | options).start() for service in self.services
        ]

    def more(self, count: int = 30, loads: list[Load] | None = None) -> None:
        """Wait until each load has `count` more transactions accepted."""
        for load in self.loads if loads is None else loads:
            load.more(count)

    def query(self, sql: str) -> list[tuple]:
        return self.postgres.execute(sql, self.database)

    def count(self, status: str) -> int:
        return self.query(f"SELECT count(*) FROM \"transaction\" WHERE status = '{status}'")[0][0]

    def settled(self) -> None:
        wait_until(lambda: not self.count("PENDING"), "nothing is PENDING", SETTLED_WITHIN)
        assert not self.count("EXPIRED")

    def finish(self) -> Counter:
        """End the loads and compare the database with what clients were told.

        Returns how often each status came.
        """
        for load in self.loads:
            load.stop()
        self.settled()
        compare(self.loads, dict(self.query('SELECT id::text, idempotency_key FROM "transaction"')))
        return sum((load.statuses for load in self.loads), Counter())
