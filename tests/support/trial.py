"""One fault under load, and the comparison of clients' answers with the database."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from installation import Installation
from load import Load
from programs import wait_until

# Each fault is injected once, and more often if `make test-faults` sets this.
FULL = os.environ.get("FAULTS") == "full"
RETRY = 2  # VALIDATION_RETRY, in seconds
SETTLED_WITHIN = 60  # seconds after the end of the fault; the table shows how long it takes


class Trial(Installation):
    """The three programs, a load on them, and the comparison afterwards."""

    def __init__(self, folder: Path, programs: list, **options):
        super().__init__(folder, programs, **{"VALIDATION_RETRY": str(RETRY)} | options)
        self.injections, self.verdicts, self.load = 0, {}, None

    def start(self, **load):
        """Start the programs, and the load once they are ready."""
        super().start()
        self.load = Load(self.service, **{"clients": 4, "pause": 0.05} | load).start()
        self.more()
        return self

    def more(self, accepted: int = 30) -> None:
        """Wait until `accepted` more transactions are accepted."""
        self.load.more(accepted)

    def post(self) -> None:
        """Start one transaction beside the load."""
        self.load.accepted.append(self.service.post("/transactions", {"station_id": 1}).json["id"])

    def forget_deleted(self) -> None:
        """Expect only what is still stored, since retention was right to delete the rest."""
        stored = self.stored()
        self.load.accepted[:] = [key for key in self.load.accepted if key in stored]
        self.verdicts = {}

    def stored(self) -> dict[str, str]:
        """The idempotency key of each transaction, by its id."""
        rows = self.query('SELECT id, idempotency_key FROM "transaction"')
        return {str(UUID(key)): idempotency_key for key, idempotency_key in rows}

    def note(self) -> None:
        """Count an injection, and check that no verdict has changed since the last one."""
        self.injections += 1
        verdicts = "SELECT id, status FROM \"transaction\" WHERE status IN ('COMPLETED', 'ERROR')"
        found = dict(self.query(verdicts))
        assert self.verdicts.items() <= found.items(), "a verdict changed"
        self.verdicts = found

    def outlast(self, seconds: float) -> None:
        """Wait until a transaction has been PENDING for so long."""
        oldest = "SELECT min(created) FROM \"transaction\" WHERE status = 'PENDING'"
        old = lambda: (found := self.query(oldest)[0][0]) and found < (time.time() - seconds) * 1e6  # noqa: E731
        wait_until(old, f"one has been PENDING for {seconds} s")

    def finish(self, name: str, table: list) -> None:
        """End the load; everything must be settled soon and agree with clients' answers."""
        self.load.stop()
        began = time.monotonic()
        wait_until(lambda: self.status("PENDING") == 0, "nothing is PENDING", SETTLED_WITHIN)
        took = time.monotonic() - began
        self.note()
        compare([self.load], self.stored())
        table.append((name, self.injections - 1, len(self.load.accepted), 0, 0, took))
        assert not self.status("EXPIRED")
        assert self.query("PRAGMA integrity_check") == [("ok",)]


def compare(loads: list[Load], stored: dict[str, str]) -> None:
    """Check what is stored, the idempotency keys by id, against what clients were told."""
    accepted = [key for load in loads for key in load.accepted]
    refused = {key: load.said[key] for load in loads for key in load.refused}
    unknown = {key for load in loads for key in [*load.unknown, *load.broken]}
    assert len(accepted) == len(set(accepted))
    assert not set(accepted) - stored.keys(), "a transaction is lost"
    wrong = [refused[key] for key in refused.keys() & set(stored.values())]
    assert not wrong, f"a client was told a failure for what is stored: {wrong}"
    more = {stored[key] for key in stored.keys() - set(accepted)} - {None}
    assert more <= unknown, "a transaction is stored that no client sent"


class Fault(NamedTuple):
    """What is done under load, how often in `make test-faults`, and which answers clients may get meanwhile.

    `answers` has None if requests may get no answer. `options` are the service's, `load` those of the load;
    `before` changes the programs before they start.
    """

    inject: Callable[[Trial], None]
    times: int = 3
    answers: set = {201}  # noqa: RUF012
    options: dict = {}  # noqa: RUF012
    load: dict = {}  # noqa: RUF012
    before: Callable[[Trial], None] = lambda run: None


def each(faults: dict, *always: str) -> list:
    """The names of the faults as parameters; `make test` only injects these."""
    return [pytest.param(name, marks=[] if name in always else pytest.mark.fault) for name in faults]


def endure(run: Trial, name: str, fault: Fault, table: list) -> None:
    """Inject a fault under load: nothing is lost, and nothing stays PENDING."""
    fault.before(run)
    run.start(**fault.load)
    for _ in range(fault.times if FULL else 1):
        run.note()
        fault.inject(run)
        run.ready()
        run.more()
    run.finish(name, table)
    answers = {*run.load.statuses, *([None] if run.load.broken else [])}
    assert answers <= fault.answers, answers
