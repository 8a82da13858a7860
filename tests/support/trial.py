"""One fault under load: what clients were told, what the database says, and whether the two agree."""

import contextlib
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path

from load import Load
from programs import Broker, Equipment, Service, wait_until

# A test injects its fault once or twice; `make test-faults` sets this, and each as often as the table shows.
FULL = os.environ.get("FAULTS") == "full"
RETRY = 2  # VALIDATION_RETRY, in seconds
SETTLED_WITHIN = RETRY + 5  # seconds after the end of the fault


def children(pid: int) -> list[int]:
    """The processes that this one started."""
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def resident(pid: int) -> float:
    """The memory that a process holds, in MB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


class Trial:
    """The three programs, a load on them, and the comparison afterwards."""

    def __init__(self, folder: Path, programs: list, **options):
        self.folder = folder
        self.broker = Broker(folder)
        self.equipment = Equipment(folder, self.broker)
        self.service = Service(folder, self.broker, **{"VALIDATION_RETRY": str(RETRY)} | options)
        programs += [self.broker, self.equipment, self.service]
        self.injections, self.verdicts, self.load = 0, {}, None

    def start(self, **load):
        """Start everything, and the load once everything is ready."""
        for program in (self.broker, self.equipment, self.service):
            program.start()
        self.ready()
        self.service.post("/stations", {"description": "Teste"})
        self.load = Load(self.service, **{"clients": 4, "pause": 0.05} | load).start()
        self.more()
        return self

    def ready(self, seconds: float = 30) -> None:
        wait_until(lambda: self.online() == "online", "the whole job can be done", seconds)

    def online(self) -> str | None:
        """What the service says of the equipment, if it is ready itself."""
        with contextlib.suppress(OSError):
            answer = self.service.get("/readyz")
            return answer.json["equipment"].get("validator") if answer.status == 200 else None
        return None

    def more(self, accepted: int = 30, seconds: float = 30) -> None:
        """Go on until that many more were accepted."""
        goal = len(self.load.accepted) + accepted
        wait_until(lambda: len(self.load.accepted) >= goal, f"{accepted} more are accepted", seconds)

    @property
    def worker(self) -> int:
        """The pid of gunicorn's worker."""
        return wait_until(lambda: children(self.service.pid), "there is a worker")[-1]

    def query(self, sql: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.folder / "energy2go.db", timeout=10)) as database:
            return database.execute(sql).fetchall()

    def status(self, status: str) -> int:
        return self.query(f"SELECT count(*) FROM \"transaction\" WHERE status = '{status}'")[0][0]

    def note(self) -> None:
        """One more injection; no verdict may have changed since the last one."""
        self.injections += 1
        found = dict(
            self.query("SELECT id, status FROM \"transaction\" WHERE status IN ('COMPLETED', 'ERROR')")
        )
        assert self.verdicts.items() <= found.items(), "a verdict changed"
        self.verdicts = found

    def finish(self, name: str, table: list, within: float = SETTLED_WITHIN, expired: int = 0) -> None:
        """End the load; everything must be settled `within` seconds, and be what clients were told."""
        self.load.stop()
        began = time.monotonic()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.status("PENDING") == 0, "nothing is PENDING", within)
        took = time.monotonic() - began
        self.note()
        stored = {row[0] for row in self.query('SELECT id FROM "transaction"')}
        keys = {row[0] for row in self.query('SELECT idempotency_key FROM "transaction"')}
        lost = [key for key in self.load.accepted if key.replace("-", "") not in stored]
        stuck = self.status("PENDING")
        table.append((name, self.injections - 1, len(self.load.accepted), len(lost), stuck, took))
        assert not lost
        assert not stuck, f"{stuck} are PENDING {within} s after the fault"
        assert not keys & set(self.load.refused), "a client was told a failure for what is stored"
        assert len(self.load.accepted) == len(set(self.load.accepted))
        assert self.status("EXPIRED") <= expired
        assert self.query("PRAGMA integrity_check") == [("ok",)]

    def told(self) -> Counter:
        """How often each HTTP status came."""
        return self.load.statuses
