"""The three programs on one SQLite file, and what tests ask of them."""

import contextlib
import re
import sqlite3
from pathlib import Path

from programs import Answer, Broker, Equipment, HttpServer, Service, wait_until

ONLINE = {"validator": "online"}


def resident(pid: int, field: str = "VmRSS") -> float:
    """The memory of a process in MB: `VmRSS` is the current value, `VmHWM` the highest."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def metric(service: HttpServer, name: str) -> float:
    """The value of one metric of a service."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", service.get("/metrics").body.decode(), re.MULTILINE)
    return float(found[1])


def every_transaction(service: HttpServer, query: str = "") -> list[dict]:
    """All transactions that match, page by page."""
    items, url = [], f"/transactions?limit=200{query}"
    while url:
        page = service.get(url).json
        items, url = items + page["items"], page["next"]
    return items


class Server(HttpServer):
    """A server that another program has started; each request has these headers."""

    def __init__(self, port: int, **headers: str):
        self.port, self.url, self.headers = port, f"http://127.0.0.1:{port}", headers

    def request(self, method: str, path: str, body=None, timeout: float = 60, **headers):
        return super().request(method, path, body, timeout, **headers, **self.headers)


class Installation:
    """A broker, an equipment and a service in a folder; `options` are the service's variables."""

    def __init__(self, folder: Path, programs: list, broker: Broker | None = None, **options):
        self.folder = folder
        self.broker = broker or Broker(folder)
        self.equipment = Equipment(folder, self.broker)
        self.service = Service(folder, self.broker, **options)
        programs += [self.broker, self.equipment, self.service]

    def start(self):
        """Start all three, and make a station once the whole job can be done."""
        for program in (self.broker, self.equipment, self.service):
            program.start()
        self.ready()
        self.station()
        return self

    def ready(self) -> None:
        wait_until(self.service.online, "the whole job can be done")

    def station(self) -> int:
        """A new station, so that a test has transactions of its own."""
        return self.service.post("/stations", {"description": "Teste"}).json["id"]

    def transact(self, station: int = 1, **headers) -> Answer:
        """A new transaction's answer, which waits for the verdict."""
        return self.service.post("/transactions", {"station_id": station}, **{"Prefer": "wait=20"} | headers)

    def query(self, sql: str, *values) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.folder / "energy2go.db", timeout=60)) as database:
            return database.execute(sql, values).fetchall()

    def status(self, status: str) -> int:
        """How many transactions have this status."""
        return self.query(f"SELECT count(*) FROM \"transaction\" WHERE status = '{status}'")[0][0]
