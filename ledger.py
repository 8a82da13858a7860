"""The ledger: everything that changes a row is a job of its one thread (`kit.writer`).

A batch settles verdicts, changes stations, stores new transactions and asks about them. When it is time, the
same thread expires what is late and asks again what is due. Questions are published after the commit.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from uuid import UUID

from peewee import Database
from prometheus_client import Histogram
from prometheus_client.core import Metric

import models
from kit import metrics
from kit.clock import SECOND, Clock
from kit.errors import Refusal
from kit.events import FIRST
from kit.logs import note
from kit.settings import Settings
from kit.storage import ERRORS, Store
from kit.waiting import Idle, Waiting
from kit.writer import Job, JobQueue, Writer
from models import Asked, Draft, Settled, Timeouts
from schemas import Status, Transaction, Verdict

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)  # seconds
ROUND = SECOND // 4  # how often the ledger looks for questions that are late or due
DAY = 24 * 60 * 60 * SECOND
DELETION = 300  # transactions that one round deletes at most
LOOK = SECOND // 10  # how often it looks for verdicts that another process stored


class Publisher(Protocol):
    """What the ledger needs of the listener."""

    unreadable: int  # messages that were ignored
    session: int  # how often it was subscribed

    @property
    def alive(self) -> bool: ...  # False once its thread has died

    @property
    def subscribed(self) -> bool: ...  # True while questions can be asked and answered

    def publish(self, questions: Iterable[Asked]) -> None: ...

    def held(self, seconds: float) -> list[UUID]: ...  # questions that the broker has not taken for so long

    def watch(self) -> None: ...  # notice a broker that no longer answers


class Creation(Job):
    """Stores a draft. Its id is fixed, so that after a failed COMMIT the same row can be written again."""

    repeatable = True


class Batch:
    """One database transaction: its times, and what to do after its commit."""

    def __init__(self, ledger: "Ledger"):
        self.database, self.publisher = ledger.store.database, ledger.publisher
        self.timeouts, self.room, self.session = ledger.timeouts, ledger.room, ledger.session
        self.retention, self.deleted = ledger.retention, ledger.deleted
        # Taken under the lock that orders commits, so `updated` rises with every commit of every process.
        self.now = max(ledger.clock.wall(), models.newest_update(self.database) + 1)
        self.clock = ledger.clock.steady()
        self.questions: list[Asked] = []  # to publish
        self.changed: list[UUID] = []  # no longer PENDING: wake those who wait for these
        self.counts: Counter[str] = Counter()
        self.delays: list[int] = []  # microseconds from question to verdict
        self.events: list[tuple[str, UUID]] = []  # to log: what it is now
        self.more = False  # more questions can be opened at once

    def take_room(self, wanted: int) -> int:
        """How many of so many questions may be opened now."""
        if not self.publisher.subscribed:
            return 0
        if self.room < wanted:
            self.room = models.room(self.database)
        taken = min(self.room, wanted)
        self.room -= taken
        return taken

    def open(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Transaction | Refusal]:
        """Call a function of `models` that makes transactions PENDING, and ask about those it says."""
        room = self.take_room(len(items))
        answers: list[Transaction | Refusal]
        answers, questions = function(self.database, items, self.now, self.clock, self.timeouts, room)
        self.room += room - len(questions)
        self.questions += questions
        self.counts["first"] += len(questions)
        return answers


# Batch functions: each gets all items of its kind in a batch, and returns a result for each.


def settle(batch: Batch, verdicts: Sequence[Verdict]) -> list[Settled]:
    """Store the first verdict of each transaction."""
    results = models.settle(batch.database, verdicts, batch.now, batch.clock)
    for verdict, settled in zip(verdicts, results, strict=True):
        batch.counts[settled.kind] += 1
        if settled.kind in ("settled", "late"):
            batch.counts[verdict.status] += 1
            batch.changed.append(verdict.transaction_id)
            batch.events.append((verdict.status, verdict.transaction_id))
        if settled.delay is not None:
            batch.delays.append(settled.delay)
    return results


def change(batch: Batch, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Call functions of `models`; a refusal is a result too."""
    results = []
    for function, arguments in calls:
        try:
            results.append(function(batch.database, *arguments))
        except Refusal as refusal:
            results.append(refusal)
    return results


def ask_again(batch: Batch, sessions: Sequence[int]) -> list[None]:
    """Ask everything PENDING again, since some may be lost. A new session starts the deadlines anew."""
    models.ask_again(batch.database, batch.clock, any(sessions))
    batch.session = max(batch.session, *sessions)
    batch.room = 0  # count anew
    return [None] * len(sessions)


def create(batch: Batch, drafts: Sequence[Draft]) -> list[Transaction | Refusal]:
    """Store new transactions as PENDING, and ask about as many as there is room for."""
    answers = batch.open(models.create_transactions, drafts)
    for draft, answer in zip(drafts, answers, strict=True):
        if isinstance(answer, Transaction) and answer.id == draft.id:
            batch.counts[Status.PENDING] += 1
            batch.events.append(("stored", draft.id))
    return answers


def retry(batch: Batch, transaction_ids: Sequence[UUID]) -> list[Transaction | Refusal]:
    """Make EXPIRED transactions PENDING again, and ask about them as about new ones."""
    answers = batch.open(models.retry, transaction_ids)
    again = [answer.id for answer in answers if isinstance(answer, Transaction)]
    batch.counts[Status.PENDING] += len(again)
    batch.events += [("retried", transaction_id) for transaction_id in again]
    return answers


def look_after(batch: Batch, items: Sequence[None]) -> list[None]:
    """Expire what is late, ask again what is due, open questions that wait; nothing while disconnected."""
    # Until `ask_again` has started them anew, the deadlines are those of an earlier connection.
    if not batch.publisher.subscribed or batch.session < batch.publisher.session:
        return [None] * len(items)
    models.hold(batch.database, batch.clock, batch.timeouts, batch.publisher.held(ROUND / SECOND))
    expired = models.expire(batch.database, batch.now, batch.clock)
    again = models.claim(batch.database, batch.clock, batch.timeouts, models.CLAIM)
    room = batch.take_room(models.CLAIM)
    opened = models.claim(batch.database, batch.clock, batch.timeouts, room, waiting=True)
    batch.room += room - len(opened)
    batch.questions += again + opened
    batch.changed += expired
    batch.events += [(Status.EXPIRED.value, transaction_id) for transaction_id in expired]
    batch.counts.update({Status.EXPIRED: len(expired), "again": len(again), "first": len(opened)})
    batch.more = len(opened) == models.CLAIM
    return [None] * len(items)


def delete_old(batch: Batch, items: Sequence[None]) -> list[None]:
    """Delete some of the transactions that have been finished for longer than RETENTION_DAYS."""
    before = batch.now - batch.retention
    batch.deleted = models.delete_finished(batch.database, before, batch.deleted, DELETION)
    return [None] * len(items)


# Verdicts come first, so that they are settled before anything expires.
ORDER = (settle, change, ask_again, create, retry, look_after, delete_old)


class Ledger(Writer):
    """The single writer. `stopping` tells whether the process is about to stop: then no request waits.

    `places` is how many requests may wait, and `changed` is called after each change of a status.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        queue: JobQueue,
        publisher: Publisher,
        clock: Clock | None = None,
        stopping: Callable[[], bool] = lambda: False,
        places: threading.Semaphore | None = None,
        changed: Callable[[], None] = lambda: None,
    ):
        self.clock, self.publisher = clock or Clock(), publisher
        super().__init__(store, queue, ORDER, lambda: self.clock.steady() / SECOND, stopping)
        retry, timeout = settings.validation_retry, settings.validation_timeout
        self.timeouts = Timeouts(round(retry * SECOND), round(timeout * SECOND))
        self.counts: Counter[str] = Counter()  # since the start: statuses, verdicts by kind, questions
        self.delays = Histogram(
            "energy2go_verdict_seconds", "Question to verdict", registry=None, buckets=DELAYS
        )
        self.sizes = Histogram("energy2go_batch_jobs", "Jobs in a batch", registry=None, buckets=BATCH_SIZES)
        self.room = 0  # questions that may be opened; never more than models.room() says
        self.retention = settings.retention_days * DAY  # 0: keep everything
        self.deleted = FIRST  # up to here, in the order of `updated`
        self.session = 0  # the listener's, once everything was asked again in it; 0: some may be lost
        self._compared = False  # the clock with the newest transaction
        self._next_round = self._next_look = 0
        self.waiting = Waiting[UUID](places or threading.BoundedSemaphore(settings.waits))
        self._changed = changed

    # Called by requests

    def create(self, draft: Draft) -> Transaction:
        """Store a draft as PENDING; raises Unprocessable or Unavailable.

        The transaction has another id than the draft if the idempotency key was used before.
        """
        transaction: Transaction = self.run(Creation(create, draft))
        return transaction

    def retry(self, transaction_id: UUID) -> Transaction:
        """Ask about an EXPIRED transaction again; raises NotFound, Conflict or Unavailable."""
        transaction: Transaction = self.run(Job(retry, transaction_id))
        return transaction

    def change(self, function: Callable[Concatenate[Database, P], T], *values: P.args, **_: P.kwargs) -> T:
        """Call a function of `models` that writes; returns what it returns, or raises what it raises."""
        result: T = self.run(Job(change, (function, values)))
        return result

    def wait(self, transaction_id: UUID, seconds: float, idle: Idle = nullcontext) -> bool:
        """Wait at most `seconds`, in the context `idle`, until a transaction is not PENDING.

        False if too many requests wait already.
        """

        def pending() -> bool:
            found = self.store.read(models.statuses, [transaction_id])
            return found.get(transaction_id) is Status.PENDING

        return self.waiting.wait(transaction_id, seconds, pending, idle)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        counts, counter, gauge = self.counts, metrics.counter, metrics.gauge
        statuses = {status.value: counts[status] for status in Status}
        yield counter("energy2go_transactions", "Transactions that became", "status", statuses)
        kinds = {kind: counts[kind] for kind in ("settled", "late", "duplicate", "contradiction", "unknown")}
        kinds["unreadable"] = self.publisher.unreadable
        yield counter("energy2go_verdicts", "Verdicts, by what they were worth", "kind", kinds)
        times = {"first": counts["first"], "again": counts["again"]}
        yield counter("energy2go_questions", "Questions asked, for the first time or again", "time", times)
        yield from self.delays.collect()
        yield from self.sizes.collect()
        yield gauge("energy2go_queue_jobs", "Jobs that wait for the ledger", self.queue.qsize())
        yield gauge("energy2go_waiters", "Requests that wait for a verdict", len(self.waiting))
        yield gauge("energy2go_wal_bytes", "Size of SQLite's log", self.store.log_size)
        try:
            pending, oldest = self.store.read(models.pending)
        except ERRORS:
            return  # `energy2go_ready` tells
        age = max(0, self.clock.wall() - oldest) / SECOND if oldest else 0
        yield gauge("energy2go_pending_transactions", "Transactions that are PENDING", pending)
        yield gauge("energy2go_oldest_pending_seconds", "Age of the oldest PENDING transaction, or 0", age)

    # What belongs to a batch (see Writer)

    def patience(self) -> float:
        due = min(self._next_round, self._next_look) if self.waiting else self._next_round
        return (due - self.clock.steady()) / SECOND

    def timed(self, jobs: list[Job]) -> list[Job]:
        clock = self.clock.steady()
        if self.waiting and clock >= self._next_look:
            self._next_look = clock + LOOK
            self._look()
        if clock < self._next_round and not any(job.function is ask_again for job in jobs):
            return []
        if not self.publisher.alive:
            raise RuntimeError("the MQTT thread died")
        self.publisher.watch()
        self._next_round = clock + min(ROUND, self.timeouts.retry // 2)
        if self.store.problem:
            return []
        session = self.publisher.session
        lost = self.publisher.subscribed and self.session < session
        old = [Job(delete_old, None)] if self.retention else []
        return [*([Job(ask_again, session)] if lost else []), Job(look_after, None), *old]

    def begin(self) -> Batch:
        batch = Batch(self)
        ahead = (batch.now - self.clock.wall()) // SECOND
        if not self._compared and ahead > 60:
            text = "the newest transaction is %(seconds)d s ahead of the clock, so times stand still"
            note(log.warning, "clock_behind", text, seconds=ahead)
        self._compared = True
        return batch

    def committed(self, batch: Batch, results: list[tuple[Job, Any]]) -> None:
        """Publish first, so that the equipment can already work on the questions."""
        requests = {result.id: job.request for job, result in results if isinstance(result, Transaction)}
        for what, key in batch.events:
            event, text = f"transaction_{what.lower()}", f"%(transaction)s is {what}"
            note(log.debug, event, text, transaction=key, request=requests.get(key))
        self.publisher.publish(batch.questions)
        self.waiting.wake(batch.changed)
        if batch.events or batch.changed:
            self._changed()
        self.room, self.session, self.deleted = batch.room, batch.session, batch.deleted
        self._next_round = 0 if batch.more else self._next_round
        self.counts.update(batch.counts)
        for delay in batch.delays:
            self.delays.observe(delay / SECOND)
        if size := sum(job.function not in (look_after, delete_old) for job, _ in results):
            self.sizes.observe(size)

    def failed(self) -> None:
        self.session = self.room = 0

    def dying(self) -> None:
        self.waiting.wake(self.waiting.keys)

    def _look(self) -> None:
        """Wake those whose verdict another process stored, or all if the process is about to stop."""
        waiting = self.waiting.keys
        try:
            found = {} if self.stopping() else self.store.read(models.statuses, waiting)
        except ERRORS as error:
            log.error("the database cannot be read: %s", error, extra={"event": "database_unreadable"})
        else:
            self.waiting.wake(key for key in waiting if found.get(key) is not Status.PENDING)
