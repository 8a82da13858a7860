"""One fault under load, and the comparison of clients' answers with the database."""

import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

from load import Load
from programs import Broker, Equipment, Service, wait_until

# A test injects its fault once or twice, and more often if `make test-faults` sets this.
FULL = os.environ.get("FAULTS") == "full"
RETRY = 2  # VALIDATION_RETRY, in seconds
SETTLED_WITHIN = RETRY + 5  # seconds after the end of the fault


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def resident(pid: int) -> float:
    """The memory of a process, in MB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def kill(pids: list[int]) -> None:
    """Kill processes (SIGKILL), and wait until they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "they are gone")


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
        """Start the programs, and the load once they are ready."""
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
        """The equipment's status in /readyz, if the service is ready."""
        with contextlib.suppress(OSError):
            answer = self.service.get("/readyz")
            return answer.json["equipment"].get("validator") if answer.status == 200 else None
        return None

    def more(self, accepted: int = 30, seconds: float = 30) -> None:
        """Wait until `accepted` more transactions are accepted."""
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
        """Count an injection, and check that no verdict has changed since the last one."""
        self.injections += 1
        found = dict(
            self.query("SELECT id, status FROM \"transaction\" WHERE status IN ('COMPLETED', 'ERROR')")
        )
        assert self.verdicts.items() <= found.items(), "a verdict changed"
        self.verdicts = found

    def finish(self, name: str, table: list, within: float = SETTLED_WITHIN, expired: int = 0) -> None:
        """End the load; everything must be settled `within` seconds and agree with clients' answers."""
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
