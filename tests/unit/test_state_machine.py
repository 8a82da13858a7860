"""In any order of events, the ledger agrees with a ten-line model of the states."""

from itertools import count
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import batch
import models
import stepped
from kit.clock import SECOND
from kit.errors import Refusal
from kit.settings import Settings
from kit.storage import execute
from ledger import Job
from models import Draft
from schemas import Status, Verdict
from trial import FULL

TIMEOUT = 60 * SECOND
LONGEST = 30  # seconds; two questions about one transaction are never further apart
WINDOW = 3  # open questions, so few that others must wait


class Table:
    """The table of states. A clock starts with a question, and stops when the connection is new."""

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

    def retry(self, key) -> bool:
        expired = self.status.get(key) is Status.EXPIRED
        if expired:
            self.status[key] = Status.PENDING
            self.clock.pop(key, None)
        return expired

    def asked(self, keys, now):
        for key in keys:
            self.clock.setdefault(key, now)


class Bench(stepped.Bench):
    """The same bench, which leaves it to the test when the ledger is subscribed."""

    def restart(self) -> None:
        self.stop()
        self.ledger = stepped.ledger(self.settings, self.loop, self.publisher, self.clock)
        self.step()


class Life(RuleBasedStateMachine):
    """What clients, the equipment, the broker and the clock do. The test sets `bench`."""

    bench: Bench
    drafts = Bundle("drafts")

    @initialize()
    def begin(self):
        execute(self.bench.database, 'DELETE FROM "transaction"')
        self.table, self.numbers, self.keys = Table(), count(1), {}
        self.start()

    def start(self):
        """A process starts with an empty queue and no connection; earlier questions may be lost."""
        self.bench.restart()
        self.retries = []
        self.creations, self.given, self.acknowledged, self.verdicts = [], [], [], 0
        self.restarts = True
        self.something_happens("connected")

    @rule(
        target=drafts, station=st.sampled_from([1, 1, 1, 2, 7]), key=st.sampled_from([None, None, "a", "b"])
    )
    def create(self, station, key):
        draft = Draft(station, key)
        draft.id, draft.created = UUID(int=next(self.numbers)), self.bench.clock.now
        self.creations.append(self.bench.put(Job(batch.create, draft)))
        return draft

    @rule(draft=drafts, status=st.sampled_from(["COMPLETED", "ERROR"]), times=st.sampled_from([1, 1, 1, 2]))
    def verdict(self, draft, status, times):
        for _ in range(times):
            self.give(draft.id, status)

    @rule(draft=drafts)
    def retry(self, draft):
        self.retries.append(self.bench.put(Job(batch.retry, draft.id)))

    def give(self, key, status):
        self.given.append((key, status))
        self.bench.put(Job(batch.settle, Verdict(key, status), lambda _: self.acknowledged.append(key)))

    @rule()
    def commit(self):
        self.step(0)

    @rule(seconds=st.sampled_from([0.3, 1, 5]))
    def time_passes(self, seconds):
        self.step(seconds)

    @rule(seconds=st.sampled_from([LONGEST, 59, 60, 3600]))
    def much_time_passes(self, seconds):
        self.step(seconds)

    @rule(what=st.sampled_from(["connected", "lost", "online"]))
    def something_happens(self, what):
        """Do what the listener would do."""
        self.bench.publisher.subscribed = what == "connected" or (what == "online" and self.subscribed)
        if what == "connected":
            self.restarts = True
        if what != "lost" and self.subscribed:
            self.bench.put(Job(batch.ask_again, what == "connected"))

    @property
    def subscribed(self) -> bool:
        return self.bench.publisher.subscribed

    @rule(hours=st.sampled_from([-1000, -1, 0, 1, 1000]))
    def crash_and_restart(self, hours):
        """The queue is lost, and the wall clock may jump."""
        self.bench.clock.advance(hours * 3600)
        self.start()

    def step(self, seconds):
        """Commit one batch with one round, in the ledger and in the table."""
        publisher, table = self.bench.publisher, self.table
        published = publisher.published = []
        publisher.at_once = None
        open_before = {key for key in table.clock if table.status[key] is Status.PENDING}
        queued = not self.bench.ledger.queue.empty()
        self.bench.step(seconds)
        now = self.bench.clock.now
        at_once = len(published) if publisher.at_once is None else publisher.at_once

        given, self.given = self.given, []
        for key, status in given:
            table.verdict(key, Status(status))
        if self.restarts and (queued or self.subscribed):
            table.clock.clear()
            self.restarts = False
        creations, self.creations = self.creations, []
        for job in creations:
            self.created(job)
        for job in self.retries:
            assert isinstance(job.result, Refusal) != table.retry(job.item)
        self.retries.clear()
        table.asked(published[:at_once], now)
        if self.subscribed:
            table.expire(now)
        table.asked(published[at_once:], now)

        assert self.acknowledged == [key for key, _ in given]
        self.acknowledged.clear()
        self.verdicts += len(given)
        # Only PENDING transactions are asked, each once per step.
        assert {table.status[key] for key in published} <= {Status.PENDING}
        assert len(set(published)) == len(published)
        assert len(published) <= models.CLAIM * self.subscribed
        if seconds >= LONGEST and self.subscribed:
            still = {key for key in open_before & table.clock.keys() if table.status[key] is Status.PENDING}
            assert still <= {*published}
        self.they_agree()

    def created(self, job):
        """Check what the client was told, and add the transaction to the table."""
        draft = job.item
        first, of = self.keys.get(draft.idempotency_key, (draft.id, draft.station_id))
        if draft.station_id == 7 or of != draft.station_id:
            assert job.result.status == 422
            return
        assert job.result.id == first
        assert job.result.station.id == draft.station_id
        if first == draft.id:
            self.table.create(draft.id)
        assert job.result.status is self.table.status[first]  # as it is now
        if draft.idempotency_key:
            self.keys[draft.idempotency_key] = first, draft.station_id

    def they_agree(self):
        stored = {row.id: row.status for row in self.bench.list()}
        assert stored == self.table.status
        counts = self.bench.ledger.counts
        judged = sum(counts[kind] for kind in ("settled", "late", "duplicate", "contradiction", "unknown"))
        assert judged == self.verdicts
        assert models.room(self.bench.database) >= 0

    def teardown(self):
        """At the end the equipment answers every question, and everything has its verdict."""
        self.something_happens("connected")
        self.step(0)
        for _ in range(len(self.table.status) + 3):
            for key in self.bench.publisher.published:
                self.give(key, "COMPLETED")
            self.step(1)
        assert Status.PENDING not in self.table.status.values()


def test_the_ledger_and_the_table_of_states_never_disagree(tmp_path, monkeypatch):
    bench = Life.bench = Bench(Settings(database_url=f"sqlite:///{tmp_path}/energy2go.db"))
    models.create_station(bench.database, "another")

    def look_after(batch, items):
        """Note how many questions were asked as soon as they were stored."""
        bench.publisher.at_once = len(batch.questions)
        return original(batch, items)

    original = batch.look_after
    monkeypatch.setattr(batch, "look_after", look_after)
    monkeypatch.setattr(batch, "ORDER", (*batch.ORDER[:-1], look_after))
    monkeypatch.setattr(models, "WINDOW", WINDOW)
    try:
        options = {"stateful_step_count": 40, "suppress_health_check": list(HealthCheck)}
        run_state_machine_as_test(Life, settings=settings(max_examples=60 if FULL else 15, **options))
    finally:
        bench.close()
