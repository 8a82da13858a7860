"""In any order of events, the ledger agrees with a ten-line model of the states."""

from itertools import count
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import models
import stepped
from kit import storage
from jobs import Creation, Verdict
from ledger import Ledger
from models import SECOND, Order
from schemas import Status
from kit.settings import Settings

TIMEOUT = 60 * SECOND
LONGEST = 30  # seconds; two questions about one transaction are never further apart
WINDOW = 3  # open questions, so few that others must wait


class Table:
    """The table of states. A clock starts with a question, and stops when everything is asked again."""

    def __init__(self):
        self.status, self.clock = {}, {}

    def create(self, key):
        self.status[key] = Status.PENDING

    def verdict(self, key, status):
        if self.status.get(key) in (Status.PENDING, Status.EXPIRED):
            self.status[key] = status

    def expire(self, now):
        for key, started in self.clock.items():
            if self.status[key] is Status.PENDING and started + TIMEOUT <= now:
                self.status[key] = Status.EXPIRED

    def asked(self, keys, now):
        for key in keys:
            self.clock.setdefault(key, now)


class Rounds(Ledger):
    """A ledger that records which questions a round asked, and which were asked when they were stored."""

    def _round(self, now):
        self._wire.rounds = len(self._wire.published)
        super()._round(now)


class Bench(stepped.Bench):
    """The same bench with that ledger."""

    def restart(self) -> None:
        self.ledger = Rounds()
        self.ledger.prepare(self.settings, self.wire, self.clock)


class Life(RuleBasedStateMachine):
    """What clients, the equipment, the broker and the clock do. The test sets `bench`."""

    bench: Bench
    orders = Bundle("orders")

    @initialize()
    def begin(self):
        models.Transaction.delete().execute()
        self.table, self.numbers, self.keys, self.verdicts = Table(), count(1), {}, 0
        self.start()

    def start(self):
        """A process starts with an empty queue and no connection; earlier questions may be lost."""
        self.bench.restart()
        self.waiting, self.acknowledged, self.verdicts = [], [], 0
        self.rearm, self.subscribed, self.refused = True, False, False
        self.something_happens("connected")

    @rule(
        target=orders, station=st.sampled_from([1, 1, 1, 2, 7]), key=st.sampled_from([None, None, "a", "b"])
    )
    def create(self, station, key):
        order = Order(UUID(int=next(self.numbers)), station, key)
        self.waiting.append(Creation(order))
        self.bench.ledger._queue.put(self.waiting[-1])
        return order.transaction_id

    @rule(
        key=orders,
        status=st.sampled_from([Status.COMPLETED, Status.ERROR]),
        times=st.sampled_from([1, 1, 1, 2]),
    )
    def verdict(self, key, status, times):
        for _ in range(times):
            self.waiting.append((key, status))
            self.bench.ledger.settle(Verdict(key, status, lambda: self.acknowledged.append(key)))

    @rule()
    def commit(self):
        self.step(0)

    @rule(seconds=st.sampled_from([0.3, 1, 5]))
    def time_passes(self, seconds):
        self.step(seconds)

    @rule(seconds=st.sampled_from([LONGEST, 59, 60, 3600]))
    def much_time_passes(self, seconds):
        self.step(seconds)

    @rule(what=st.sampled_from(["connected", "lost", "refused", "allowed", "online"]))
    def something_happens(self, what):
        """Tell the ledger what the listener would tell it."""
        ledger = self.bench.ledger
        if what == "lost":
            ledger.subscribed = False
        elif what == "refused":
            ledger.refused = True
        else:
            if what == "connected":
                ledger.subscribed = True
            if what in ("connected", "allowed"):
                ledger.refused = False
            ledger.rearm()
            self.rearm = True
        self.subscribed, self.refused = ledger.subscribed, ledger.refused

    @rule(hours=st.sampled_from([-1000, -1, 0, 1, 1000]))
    def crash_and_restart(self, hours):
        """The queue is lost, and the wall clock may jump."""
        self.bench.clock.advance(hours * 3600)
        self.start()

    def step(self, seconds):
        """Commit one batch and make one round, in the ledger and in the table."""
        wire, table = self.bench.wire, self.table
        wire.published.clear()
        wire.rounds = None
        open_before = {key for key in table.clock if table.status[key] is Status.PENDING}
        self.bench.step(seconds)
        now = self.bench.clock.now
        rounds = len(wire.published) if wire.rounds is None else wire.rounds

        jobs, self.waiting = self.waiting, []
        for key, status in [job for job in jobs if not isinstance(job, Creation)]:
            table.verdict(key, status)
        for job in [job for job in jobs if isinstance(job, Creation)]:
            self.created(job)
        table.asked(wire.published[:rounds], now)
        if self.subscribed and self.rearm:
            table.clock.clear()
            self.rearm = False
        if self.subscribed and not self.refused:
            table.expire(now)
        table.asked(wire.published[rounds:], now)

        given = [key for key, _ in [job for job in jobs if not isinstance(job, Creation)]]
        assert self.acknowledged == given
        self.acknowledged.clear()
        self.verdicts += len(given)
        # Only PENDING transactions are asked, each once per step; a broker that refuses gets one.
        assert {table.status[key] for key in wire.published} <= {Status.PENDING}
        assert len(set(wire.published)) == len(wire.published)
        assert len(wire.published) <= (1 if self.refused else models.CLAIM) * self.subscribed
        if seconds >= LONGEST and self.subscribed and not self.refused:
            still = {key for key in open_before & table.clock.keys() if table.status[key] is Status.PENDING}
            assert still <= {*wire.published}
        self.they_agree()

    def created(self, job):
        """Check what the client was told, and add the transaction to the table."""
        own, station, key = job.order
        first, of = self.keys.get(key, (own, station))
        if station == 7 or of != station:
            with pytest.raises(models.Unprocessable):
                job.result(0)
        else:
            assert job.result(0).id == first
            assert job.result(0).status is Status.PENDING
            assert job.result(0).station.id == station
            if first == own:
                self.table.create(own)
            if key:
                self.keys[key] = first, station

    def they_agree(self):
        stored = {row.id: row.status for row in models.list_transactions(1000)}
        assert stored == self.table.status
        counts = self.bench.ledger.counts
        judged = sum(counts[kind] for kind in ("settled", "late", "duplicate", "contradiction", "unknown"))
        assert judged == self.verdicts
        assert models.Transaction.select().where(models.SQL(models.OPEN)).count() <= WINDOW

    def teardown(self):
        """At the end the equipment answers every question, and everything has its verdict."""
        self.something_happens("connected")
        self.step(0)
        for _ in range(len(self.table.status) + 3):
            for key in self.bench.wire.published:
                self.verdict(key, Status.COMPLETED, 1)
            self.step(1)
        assert Status.PENDING not in self.table.status.values()


def test_the_ledger_and_the_table_of_states_never_disagree(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "WINDOW", WINDOW)
    url = f"sqlite:///{tmp_path}/energy2go.db"
    storage.bind(url)
    Life.bench = Bench(Settings(database_url=url))
    models.create_station("another")
    try:
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=120, stateful_step_count=40, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        Life.bench.pool.shutdown()
        storage.close()
