"""The single writer: a thread that takes jobs from one queue and runs a batch of them in one database transaction.

Everything that changes a row is a job: new transactions, changes of stations, verdicts, asking again. One commit, and
so one fsync, serves a whole batch. Only after the commit are questions published, requests answered and messages
acknowledged. Between batches the same thread expires what is late and asks again what is due.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, Full, SimpleQueue
from typing import Any, Protocol, Self
from uuid import UUID

from peewee import Database
from prometheus_client import Histogram
from prometheus_client.core import Metric

import models
from kit import metrics, storage
from kit.errors import Refusal, Unavailable
from kit.settings import Settings
from models import SECOND, Asked, Draft, Settled, Timeouts
from schemas import Status, Transaction, Verdict

log = logging.getLogger(__name__)

MIGRATIONS = os.path.join(os.path.dirname(__file__), "migrations")
BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)  # seconds
PATIENCE = 10  # seconds that a request waits until its job is taken, and that a commit may be in doubt
QUEUE = 10_000  # jobs that may wait
BATCH = 500  # jobs that one commit takes
ROUND = SECOND // 4  # how often the ledger looks for questions that are late or due
LOOK = SECOND // 10  # how often it looks for verdicts that another process stored
OPENING = "it is not open yet"
STOPPING = "The service is stopping; nothing was stored."
UNKNOWN = "The outcome is unknown. Send the request again with the same Idempotency-Key."


class Clock:
    """Two clocks, in microseconds since 1970. Tests replace them.

    `wall` follows the wall clock, for what people read. `steady` starts at the same time and ignores every later step
    of the wall clock, for deadlines.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def wall(self) -> int:
        return time.time_ns() // 1000

    def steady(self) -> int:
        return (self._offset + time.monotonic_ns()) // 1000


class Publisher(Protocol):
    """What the ledger needs of the listener."""

    alive: bool  # False once its thread has died
    subscribed: bool  # True while questions can be asked and answered
    unreadable: int  # messages that were ignored

    def publish(self, questions: Iterable[Asked]) -> None:
        """Ask these."""

    def watch(self) -> None:
        """Called now and then, to notice a broker that no longer answers."""


class Job:
    """One item for a batch function. After the commit, `then` gets the result, and so does the request that waits.

    Either the ledger takes a job or the request that made it withdraws it: both call `take`, and the first one wins.
    """

    def __init__(self, function: Callable[..., list[Any]], item: Any, then: Callable[[Any], None] | None = None):
        self.function, self.item, self.then = function, item, then
        self.result: Any = None
        self.in_doubt = False  # its COMMIT failed, so it may be stored
        self._taken, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()

    def take(self) -> bool:
        """True for the first caller: from then on the job is the caller's."""
        return self._taken.acquire(blocking=False)

    def finish(self, result: Any) -> None:
        """Hand over the result; a Refusal or another exception will be raised in the request that waits."""
        self.result = result
        self._done.release()
        if self.then:
            self.then(result)

    def wait(self, seconds: float = -1) -> bool:
        """Wait for the result; False if there is none after so many seconds."""
        return self._done.acquire(timeout=seconds)


class JobQueue(SimpleQueue[Job | None]):
    """Where jobs wait, at most QUEUE of them; None only wakes the ledger."""

    def put(self, job: Job | None) -> None:  # type: ignore[override]
        """Raises queue.Full."""
        if self.qsize() >= QUEUE:
            raise Full
        super().put(job)


class Batch:
    """One database transaction of the ledger: its times, and what to do once it is committed."""

    def __init__(self, database: Database, timeouts: Timeouts, clock: Clock, publisher: Publisher, room: int):
        self.database, self.timeouts, self.publisher, self.room = database, timeouts, publisher, room
        # Taken under the lock that orders commits, so that `updated` rises with every commit of any process.
        self.now = max(clock.wall(), models.newest_update(database) + 1)
        self.clock = clock.steady()
        self.questions: list[Asked] = []  # to publish
        self.changed: list[UUID] = []  # no longer PENDING: wake those who wait for these
        self.counts: Counter[str] = Counter()
        self.delays: list[int] = []  # microseconds from question to verdict
        self.events: list[tuple[str, UUID]] = []  # to log
        self.more = False  # there is more to open, at once

    def take_room(self, wanted: int) -> int:
        """How many of so many questions may be opened now."""
        if not self.publisher.subscribed:
            return 0
        if self.room < wanted:
            self.room = models.room(self.database)
        taken = min(self.room, wanted)
        self.room -= taken
        return taken


# Batch functions: each takes all items of its kind in a batch, and returns a result for each.


def create(batch: Batch, drafts: Sequence[Draft]) -> list[Transaction | Refusal]:
    """Store new transactions as PENDING, and ask about them as far as there is room."""
    room = batch.take_room(len(drafts))
    arguments = batch.now, batch.clock, batch.timeouts, room
    answers, questions = models.create_transactions(batch.database, drafts, *arguments)
    batch.room += room - len(questions)
    batch.questions += questions
    batch.counts["first"] += len(questions)
    for draft, answer in zip(drafts, answers, strict=True):
        if isinstance(answer, Transaction) and answer.id == draft.id:
            batch.counts[Status.PENDING] += 1
            batch.events.append(("%(transaction)s is stored", draft.id))
    return answers


def settle(batch: Batch, verdicts: Sequence[Verdict]) -> list[Settled]:
    """Store the first verdict of each transaction."""
    results = models.settle(batch.database, verdicts, batch.now, batch.clock)
    for verdict, settled in zip(verdicts, results, strict=True):
        batch.counts[settled.kind] += 1
        if settled.kind in ("settled", "late"):
            batch.counts[verdict.status] += 1
            batch.changed.append(verdict.transaction_id)
            batch.events.append((f"%(transaction)s is {verdict.status}", verdict.transaction_id))
        if settled.delay is not None:
            batch.delays.append(settled.delay)
    return results


def change(batch: Batch, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Call functions of `models`; a refusal is a result too."""

    def result(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            return function(batch.database, *arguments)
        except Refusal as refusal:
            return refusal

    return [result(*call) for call in calls]


def ask_again(batch: Batch, restarts: Sequence[bool]) -> list[None]:
    """Ask everything PENDING again: questions on the way may be lost. True starts the deadlines anew, too."""
    models.ask_again(batch.database, batch.clock, any(restarts))
    batch.room = 0  # count anew
    return [None] * len(restarts)


def look_after(batch: Batch, items: Sequence[None]) -> list[None]:
    """Expire what is late, ask again what is due, and open questions that wait."""
    expired = models.expire(batch.database, batch.now, batch.clock)
    again = models.claim(batch.database, batch.clock, batch.timeouts, models.CLAIM)
    room = batch.take_room(models.CLAIM)
    opened = models.claim(batch.database, batch.clock, batch.timeouts, room, waiting=True)
    batch.room += room - len(opened)
    batch.questions += again + opened
    batch.changed += expired
    batch.counts.update({Status.EXPIRED: len(expired), "again": len(again), "first": len(opened)})
    batch.more = len(opened) == models.CLAIM
    return [None] * len(items)


class Ledger:
    """Writes what is in the queue while it is entered as a context manager.

    `problem` says why nothing can be written now; it is empty if the last write worked. `stopping` tells whether the
    process is about to stop, so that nobody waits for a verdict any longer.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queue: JobQueue,
        publisher: Publisher,
        clock: Clock | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.problem = OPENING
        self.counts: Counter[str] = Counter()  # since the start: statuses, verdicts by kind, questions
        self.delays = Histogram("energy2go_verdict_seconds", "From question to verdict", registry=None, buckets=DELAYS)
        self.batches = Histogram("energy2go_batch_jobs", "Jobs in a batch", registry=None, buckets=BATCH_SIZES)
        self.clock = clock or Clock()
        self.timeouts = Timeouts(round(settings.validation_retry * SECOND), round(settings.validation_timeout * SECOND))
        self._database, self._queue, self._publisher, self._is_stopping = database, queue, publisher, stopping
        self._room = 0  # questions that may be opened; never more than models.room() says
        self._lost = True  # questions may have been lost on the way: ask again
        self._opened = False
        self._uncertain = False  # a COMMIT failed
        self._held: list[Job] = []  # new transactions whose commit is in doubt
        self._held_since = 0
        self._next_round = self._next_look = 0
        self._waiting: dict[UUID, list[threading.Event]] = {}
        self._waiting_lock = threading.Lock()
        self._most_waiting = settings.threads // 2
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is still in the queue, and end the thread."""
        self._stopped = True
        with suppress(Full):  # then it is awake anyway
            self._queue.put(None)
        self._thread.join(3)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    # Called by requests

    def create(self, station_id: int, idempotency_key: str | None) -> Transaction:
        """Store a new transaction as PENDING; raises Unprocessable or Unavailable."""
        transaction: Transaction = self._run(Job(create, Draft(station_id, idempotency_key)))
        return transaction

    def change(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of `models` that writes; returns what it returns, or raises what it raises."""
        return self._run(Job(change, (function, arguments)))

    def _run(self, job: Job) -> Any:
        """Hand a job to the ledger and wait for its result; after PATIENCE, withdraw it if it was not taken."""
        if self._stopped:
            raise Unavailable(STOPPING)
        if self.problem and self.problem != OPENING:
            raise Unavailable(f"The database cannot be written; nothing was stored: {self.problem}.")
        try:
            self._queue.put(job)
        except Full:
            raise Unavailable("Too many requests are waiting; nothing was stored.") from None
        if not job.wait(PATIENCE):
            if job.take():
                raise Unavailable("The database was busy for too long; nothing was stored.")
            if not job.wait(PATIENCE):
                raise Unavailable(UNKNOWN)
        if isinstance(job.result, Exception):
            raise job.result
        return job.result

    def wait(self, transaction_id: UUID, seconds: float) -> bool:
        """Wait until a transaction is not PENDING, `seconds` at most; False at once if too many wait already."""
        event = threading.Event()
        with self._waiting_lock:
            if sum(map(len, self._waiting.values())) >= self._most_waiting:
                return False
            self._waiting.setdefault(transaction_id, []).append(event)
        try:
            # The verdict may have been stored before this request was listed.
            stored = storage.read(self._database, models.statuses, [transaction_id])
            if stored.get(transaction_id) is Status.PENDING:
                event.wait(seconds)
        finally:
            with self._waiting_lock:
                self._waiting[transaction_id].remove(event)
                if not self._waiting[transaction_id]:
                    del self._waiting[transaction_id]
        return True

    def _wake(self, transaction_ids: Iterable[UUID]) -> None:
        with self._waiting_lock:
            for transaction_id in transaction_ids:
                for event in self._waiting.get(transaction_id, ()):
                    event.set()

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        counts = self.counts
        verdicts = {kind: counts[kind] for kind in ("settled", "late", "duplicate", "contradiction", "unknown")}
        verdicts["unreadable"] = self._publisher.unreadable
        statuses = {status.value: counts[status] for status in Status}
        yield metrics.counter("energy2go_transactions", "Transactions that became", "status", statuses)
        yield metrics.counter("energy2go_verdicts", "Verdicts, by what they were worth", "kind", verdicts)
        questions = {"first": counts["first"], "again": counts["again"]}
        yield metrics.counter("energy2go_questions", "Questions asked, for the first time or again", "time", questions)
        yield from self.delays.collect()
        yield from self.batches.collect()
        yield metrics.gauge("energy2go_queue_jobs", "Jobs that wait for the ledger", self._queue.qsize())
        yield metrics.gauge("energy2go_waiters", "Requests that wait for a verdict", len(self._waiting))
        oldest = storage.read(self._database, models.oldest_pending)
        age = max(0, self.clock.wall() - oldest) / SECOND if oldest else 0
        yield metrics.gauge("energy2go_oldest_pending_seconds", "Age of the oldest PENDING transaction, or 0", age)

    # The thread

    def _work(self) -> None:
        try:
            while not (self._stopped and self._queue.empty()):
                self.step()
            self._refuse(self._held, UNKNOWN)
            storage.drop(self._database)
        except BaseException:
            log.critical("the ledger's thread died; the process ends", exc_info=True)
            self._give_up()
            os._exit(1)  # not 3 or 4: gunicorn would halt instead of starting a new worker

    def _give_up(self) -> None:
        """Fail jobs that have not started. Say nothing to jobs already in a batch: they may be committed."""
        self._stopped = True
        self._refuse(self._take(0), "The service restarts; nothing was stored.")
        self._wake(list(self._waiting))
        time.sleep(0.1)  # let the answers leave

    def step(self, patience: float | None = None) -> None:
        """Commit one batch, waiting at most `patience` seconds for its first job, together with what is due."""
        due = min(self._next_round, self._next_look) if self._waiting else self._next_round
        jobs = self._take(max(0, due - self.clock.steady()) / SECOND if patience is None else patience)
        clock = self.clock.steady()
        if clock >= self._next_round or any(job.function is ask_again for job in jobs):
            if not self._publisher.alive:
                raise RuntimeError("the MQTT thread died")
            self._publisher.watch()
            self._next_round = clock + (SECOND if self.problem else min(ROUND, self.timeouts.retry // 2))
            if self.problem:
                self._recover()
            jobs += self._timed()
        if self.problem:
            self._refuse(jobs, f"The database cannot be written; nothing was stored: {self.problem}.")
        elif jobs:
            self._write(jobs)
        if self._waiting and clock >= self._next_look:
            self._next_look = clock + LOOK
            self._look()

    def _take(self, patience: float) -> list[Job]:
        """The jobs of the next batch, without those that were withdrawn."""
        jobs: list[Job] = []
        try:
            job = self._queue.get(timeout=patience) if patience else self._queue.get_nowait()
            while True:
                if job and job.take():
                    jobs.append(job)
                if len(jobs) == BATCH:
                    break
                job = self._queue.get_nowait()
        except Empty:
            pass
        return jobs

    def _timed(self) -> list[Job]:
        """What the clock asks for. Nothing is asked and nothing expires while there is no connection."""
        if not self._publisher.subscribed:
            return []
        lost, self._lost = self._lost, False
        return [*([Job(ask_again, True)] if lost else []), Job(look_after, None)]

    def _write(self, jobs: list[Job]) -> None:
        """Commit these jobs. If one of them raises, the batch is rolled back and each runs alone."""
        try:
            self._commit(jobs)
        except Exception as error:
            if len(jobs) == 1:
                log.exception("a job failed")
                jobs[0].finish(error)
            for job in jobs if len(jobs) > 1 else ():
                self._write([job])

    def _commit(self, jobs: list[Job], again: bool = True) -> None:
        """Run the jobs in one database transaction; after its commit publish, answer, acknowledge and wake."""
        groups: dict[Callable[..., list[Any]], list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.function, []).append(job)
        committing = False
        try:
            with self._database.atomic():
                storage.lock(self._database)
                batch = Batch(self._database, self.timeouts, self.clock, self._publisher, self._room)
                results = [function(batch, [job.item for job in group]) for function, group in groups.items()]
                committing = True
        except storage.ERRORS as error:
            if not storage.is_fault(error):
                raise
            if again and not committing and storage.is_postgresql(self._database):
                storage.drop(self._database)  # a deadlock, or a connection that was lost while it was idle
                self._commit(jobs, again=False)
            else:
                self._fail(error, jobs, committing)
            return
        self._room = batch.room
        self._next_round = 0 if batch.more else self._next_round
        self.counts.update(batch.counts)
        for delay in batch.delays:
            self.delays.observe(delay / SECOND)
        if asked := sum(job.function is not look_after for job in jobs):
            self.batches.observe(asked)
        for event, transaction_id in batch.events:
            log.debug(event, {"transaction": transaction_id})
        self._publisher.publish(batch.questions)  # first, so that the equipment can already work on them
        for group, found in zip(groups.values(), results, strict=True):
            for job, result in zip(group, found, strict=True):
                job.finish(result)
        self._wake(batch.changed)

    def _fail(self, error: Exception, jobs: list[Job], in_doubt: bool) -> None:
        """Note that nothing can be written now. An error from COMMIT leaves in doubt whether the batch is stored."""
        self._note(error)
        self._lost, self._room = True, 0
        self._uncertain = self._uncertain or in_doubt
        self._held_since = self._held_since if self._held else self.clock.steady()
        for job in jobs:
            if job.function is create and (in_doubt or job.in_doubt):
                job.in_doubt = True
                self._held.append(job)
            elif in_doubt:
                job.finish(Unavailable(UNKNOWN))
            else:
                job.finish(Unavailable(f"The database cannot be written; nothing was stored: {self.problem}."))

    def _note(self, error: Exception) -> None:
        """Say why the database cannot be written, and let go of its connections."""
        self.problem = str(error).partition("\n")[0]
        log.error("the database cannot be written: %s", self.problem)
        self._next_round = self.clock.steady() + SECOND
        storage.drop(self._database)

    def _recover(self) -> None:
        """Find out with a write of our own whether the database can be written again; then settle what is in doubt."""
        if self._held and self.clock.steady() - self._held_since >= PATIENCE * SECOND:
            self._refuse(self._held, UNKNOWN)
            self._held = []
        try:
            if not self._opened:
                storage.prepare(self._database, MIGRATIONS, models.TABLES)
                self._opened = True
            if self._uncertain:
                storage.checkpoint(self._database)
                self._uncertain = False
            storage.probe(self._database)
        except (*storage.ERRORS, OSError) as error:
            self._note(error)
            return
        self.problem = ""
        log.info("the database can be written")
        held, self._held = self._held, []
        if held:
            self._write(held)

    def _refuse(self, jobs: list[Job], reason: str) -> None:
        for job in jobs:
            job.finish(Unavailable(reason))

    def _look(self) -> None:
        """Wake those whose verdict another process stored, and everyone if the process is about to stop."""
        waiting = list(self._waiting)
        try:
            found = {} if self._is_stopping() else storage.read(self._database, models.statuses, waiting)
        except storage.ERRORS as error:
            log.error("the database cannot be read: %s", error)
        else:
            self._wake(key for key in waiting if found.get(key) is not Status.PENDING)
