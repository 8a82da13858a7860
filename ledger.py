"""The ledger: one thread that does every write. It commits all the jobs that wait, and then answers them.

One commit, and so one fsync, serves a whole batch; no job learns its result before it. A bad job only hurts
itself. `batch.py` says what the jobs do. Questions are published after the commit.
"""

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Full, SimpleQueue
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

from peewee import Database
from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, Metric

import batch
from batch import BEHIND, ROUND, Batch, Publisher, State
from kit import metrics
from kit.clock import SECOND, Clock
from kit.errors import Unavailable
from kit.logs import note
from kit.settings import Settings
from kit.storage import LONGEST_WRITE, OPENING, InDoubt, NotWritten, Store, is_postgresql
from kit.threads import hand_over, resolve
from kit.trace import REQUEST
from models import Draft, Timeouts
from schemas import Status, Transaction

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 10.0  # seconds that a request waits until its job is taken, and that a commit may be in doubt
QUEUE = 10_000  # jobs that may wait
BATCH = 500  # jobs that one commit takes
BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)  # seconds
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
STOPPING = "The service is stopping; nothing was stored."
NOT_WRITTEN = "The database cannot be written; nothing was stored: {}."
FULL = "Too many requests are waiting; nothing was stored."
BUSY = "The database was busy for too long; nothing was stored."
UNKNOWN = "The outcome is unknown. Send the request again with the same Idempotency-Key."


class Job:
    """One item for a batch function. After the commit `then` is called, and the request gets the result.

    A `repeatable` job can run again after a COMMIT that failed, whether or not it was stored.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        item: Any,
        then: Callable[[Any], None] | None = None,
        repeatable: bool = False,
    ):
        self.function, self.item, self.then, self.repeatable = function, item, then, repeatable
        self.result: Any = None
        self.request = REQUEST.get()  # the id of the request that waits for it
        self.future: asyncio.Future[Any] | None = None  # of that request
        self.in_doubt = False  # its COMMIT failed, so it may be stored
        self._taken = threading.Lock()

    def take(self) -> bool:
        """True for the first caller: the ledger, which runs the job, or the request, which withdraws it."""
        return self._taken.acquire(blocking=False)


class JobQueue(SimpleQueue[Job | None]):
    """Where jobs wait, at most QUEUE of them; None only wakes the ledger."""

    def put(self, job: Job | None) -> None:  # type: ignore[override]
        """Raises queue.Full."""
        if self.qsize() >= QUEUE:
            raise Full
        super().put(job)


class Ledger:
    """The single writer, which runs while it is entered as a context manager.

    `changed` is called after each change of a status. `stopping` is set when the process is about to stop.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        queue: JobQueue,
        publisher: Publisher,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ):
        self.store, self.queue, self.publisher, self.clock = store, queue, publisher, clock or Clock()
        self._loop, self._changed = loop, changed
        retry, timeout = settings.validation_retry, settings.validation_timeout
        self._timeouts = Timeouts(round(retry * SECOND), round(timeout * SECOND))
        self.counts: Counter[str] = Counter()  # since the start: statuses, verdicts by kind, questions
        self.delays = Histogram(
            "energy2go_verdict_seconds", "Question to verdict", registry=None, buckets=DELAYS
        )
        self.sizes = Histogram("energy2go_batch_jobs", "Jobs in a batch", registry=None, buckets=BATCH_SIZES)
        self.stopping = False
        self.pending: tuple[int, int | None] | None = None  # what models.pending said last; None: not known
        self._retention = settings.retention_days * DAY  # 0: keep everything
        self._state = State()
        self._newest = 0  # no transaction is newer
        self._behind = False  # the wall clock is behind that
        self._deleted = self._deleting = self._reported = 0  # not logged yet; since when; the last line
        self._next_round = self._next_recovery = self._held_since = 0
        self._held: list[Job] = []  # repeatable jobs whose COMMIT is in doubt
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is still in the queue, and end the thread."""
        self.stopping = self._stopped = True
        with suppress(Full):  # then it is awake anyway
            self.queue.put(None)
        self._thread.join(3)

    @property
    def problem(self) -> str:
        """Why nothing can be written now, or nothing."""
        since = self.store.writing_since
        slow = bool(since) and time.monotonic() - since > LONGEST_WRITE
        return self.store.problem or ("a write takes too long" if slow else "")

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    # Called by requests, in the loop

    async def create(self, draft: Draft) -> Transaction:
        """Store a draft as PENDING; raises Unprocessable or Unavailable.

        The transaction has another id than the draft if the idempotency key was used before.
        """
        # The draft's id is fixed, so that after a failed COMMIT the same row can be written again.
        transaction: Transaction = await self._run(Job(batch.create, draft, repeatable=True))
        return transaction

    async def retry(self, transaction_id: UUID) -> Transaction:
        """Ask about an EXPIRED transaction again; raises NotFound, Conflict or Unavailable."""
        transaction: Transaction = await self._run(Job(batch.retry, transaction_id))
        return transaction

    async def change(
        self, function: Callable[Concatenate[Database, P], T], *values: P.args, **named: P.kwargs
    ) -> T:
        """Call a function of `models` that writes; returns what it returns, or raises what it raises."""
        result: T = await self._run(Job(batch.change, lambda database: function(database, *values, **named)))
        return result

    async def _run(self, job: Job) -> Any:
        """Hand over a job and wait for its result; after PATIENCE, withdraw it if it was not taken."""
        if self._stopped:
            raise Unavailable(STOPPING)
        if problem := self.problem.replace(OPENING, ""):
            raise Unavailable(NOT_WRITTEN.format(problem))
        job.future = self._loop.create_future()
        try:
            self.queue.put(job)
        except Full:
            raise Unavailable(FULL) from None
        timer = self._loop.call_later(PATIENCE, self._withdraw, job.future, job)
        try:
            return await job.future
        finally:
            timer.cancel()

    def _withdraw(self, future: asyncio.Future[Any], job: Job) -> None:
        """The request has waited for PATIENCE. It does so once more if its job was taken."""
        if job.take():
            resolve([(future, Unavailable(BUSY))])
        else:
            self._loop.call_later(PATIENCE, resolve, [(future, Unavailable(UNKNOWN))])

    # The thread

    def _work(self) -> None:
        try:
            while not (self._stopped and self.queue.empty()):
                self.step()
            self._refuse(self._held, UNKNOWN)
        except BaseException:
            about = {"event": "thread_died"}
            log.critical("the ledger's thread died; the process ends", exc_info=True, extra=about)
            # Fail jobs that have not started. Say nothing to jobs already in a batch: they may be committed.
            self._stopped = True
            self._refuse(self._take(0), "The service restarts; nothing was stored.")
            time.sleep(0.1)  # let the answers leave
            logging.shutdown()
            os._exit(1)  # not 3 or 4: gunicorn would halt instead of starting a new worker

    def step(self, patience: float | None = None) -> None:
        """Commit one batch, waiting at most `patience` seconds for its first job."""
        if patience is None:
            patience = (self._next_round - self.clock.steady()) / SECOND
        jobs = self._take(patience)
        if self.store.problem and self.clock.steady() >= self._next_recovery:
            self._recover()
        jobs += self._due(jobs)
        if self.store.problem:
            self._refuse(jobs, NOT_WRITTEN.format(self.store.problem))
        elif jobs:
            self._write(jobs)

    def _take(self, patience: float) -> list[Job]:
        """The jobs of the next batch, without those that were withdrawn."""
        jobs: list[Job] = []
        with suppress(Empty):
            job = self.queue.get(timeout=patience) if patience > 0 else self.queue.get_nowait()
            while True:
                if job and job.take():
                    jobs.append(job)
                if len(jobs) == BATCH:
                    break
                job = self.queue.get_nowait()
        return jobs

    def _due(self, jobs: list[Job]) -> list[Job]:
        """What to do besides these jobs, because it is time."""
        clock = self.clock.steady()
        if clock < self._next_round and not any(job.function is batch.ask_again for job in jobs):
            return []
        if not self.publisher.alive:
            raise RuntimeError("the MQTT thread died")
        self.publisher.watch()
        self._next_round = clock + min(ROUND, self._timeouts.retry // 2)
        if self.store.problem:
            return []
        session = self.publisher.session
        lost = self.publisher.subscribed and self._state.session < session
        again = [Job(batch.ask_again, session)] if lost else []
        return [
            *again,
            Job(batch.look_after, None),
            *([Job(batch.delete_old, None, self._report_deletions)] if self._retention else []),
        ]

    def _write(self, jobs: list[Job]) -> None:
        """Commit these jobs. If one of them raises, the batch is rolled back and each runs alone."""
        try:
            self._commit(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._write([job])
            else:
                log.exception("a job failed", extra={"event": "job_failed", "request": jobs[0].request})
                self._answer([(jobs[0], error)])

    def _commit(self, jobs: list[Job], again: bool = True) -> None:
        """Run these jobs in one database transaction, and hand over their results after its commit."""
        results, began = list[tuple[Job, Any]](), time.monotonic()
        try:
            with self.store.transaction():
                database, clock = self.store.database, self.clock
                work = Batch(database, self.publisher, clock, self._timeouts, self._retention, self._state)
                for function in batch.ORDER:
                    if group := [job for job in jobs if job.function is function]:
                        results += zip(group, function(work, [job.item for job in group]), strict=True)
        except (NotWritten, InDoubt) as error:
            quick = time.monotonic() - began < LONGEST_WRITE
            if again and quick and isinstance(error, NotWritten) and is_postgresql(self.store.database):
                # A deadlock, or a connection that was lost while it was idle.
                self._commit(jobs, again=False)
            else:
                self._fail(jobs, error)
        else:
            self._committed(work, results)

    def _committed(self, work: Batch, results: list[tuple[Job, Any]]) -> None:
        """Publish, so that the equipment can already work on the questions; then answer.

        Both wake other threads, so they come last: then this one soon leaves the interpreter to them.
        """
        self._state = work.state
        self._next_round = 0 if work.more else self._next_round
        self.counts.update(work.counts)
        for delay in work.delays:
            self.delays.observe(delay / SECOND)
        if size := sum(job.function not in (batch.look_after, batch.delete_old) for job, _ in results):
            self.sizes.observe(size)
        if log.isEnabledFor(logging.DEBUG):
            requests = {one.id: job.request for job, one in results if isinstance(one, Transaction)}
            for what, key in work.events:
                event, text = f"transaction_{what.lower()}", f"%(transaction)s is {what}"
                note(log.debug, event, text, transaction=key, request=requests.get(key))
        self._compare_clocks(work)
        self.publisher.publish(work.questions)
        self._answer(results)
        if work.events:
            self._changed()

    def _compare_clocks(self, work: Batch) -> None:
        """Warn when the newest transaction comes from the future."""
        self._newest = work.now
        if work.behind > BEHIND and not self._behind:
            text = "the newest transaction is %(seconds)d s ahead of the clock: times stand still, and "
            text += "nothing is deleted"
            note(log.warning, "clock_behind", text, seconds=work.behind // SECOND)
        self._behind = work.behind > BEHIND

    def _report_deletions(self, deleted: int) -> None:
        """Log how many were deleted when a run of deletions ends, and once a minute while it lasts."""
        clock = self.clock.steady()
        if deleted and not self._deleted:
            self._deleting = clock
        self._deleted += deleted
        if self._deleted and clock >= max(self._reported, 0 if not deleted else self._deleting) + MINUTE:
            text = "%(count)d transactions were deleted, as RETENTION_DAYS asks"
            note(log.info, "transactions_deleted", text, count=self._deleted)
            self._deleted, self._reported = 0, clock

    def _answer(self, results: list[tuple[Job, Any]]) -> None:
        """Hand over results, to the requests that wait with one call for all."""
        for job, result in results:
            job.result = result
            if job.then:
                job.then(result)
        if waiting := [(job.future, result) for job, result in results if job.future]:
            hand_over(self._loop, waiting)

    def _refuse(self, jobs: list[Job], detail: str) -> None:
        """Fail these jobs with a 503."""
        self._answer([(job, Unavailable(detail)) for job in jobs])

    # When the database cannot be written

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """Tell jobs what is known. Hold those in doubt that can be repeated."""
        self.store.fail(str(error))
        self._state = State()
        self._next_recovery = self.clock.steady() + SECOND
        self._held_since = self._held_since or self.clock.steady()
        for job in jobs:
            job.in_doubt |= isinstance(error, InDoubt)
            if job.in_doubt and job.repeatable:
                self._held.append(job)
            else:
                self._refuse([job], UNKNOWN if job.in_doubt else NOT_WRITTEN.format(error))

    def _recover(self) -> None:
        """See whether the database can be written again; if so, run what is in doubt a second time."""
        self.store.recover()
        self._next_recovery = self.clock.steady() + SECOND
        held, self._held = self._held, []
        late = self.clock.steady() - self._held_since >= PATIENCE * SECOND
        if late or (self.store.problem and self.stopping):
            self._refuse(held, UNKNOWN)
        elif self.store.problem:
            self._held = held
        elif held:
            self._write(held)
        self._held_since = self._held_since if self._held else 0

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
        deleted = counts["deleted"]
        yield CounterMetricFamily("energy2go_deleted", "Transactions that retention deleted", deleted)
        behind = max(0, self._newest - self.clock.wall()) / SECOND
        yield gauge("energy2go_clock_behind_seconds", "How far the newest transaction is ahead", behind)
        yield gauge("energy2go_queue_jobs", "Jobs that wait for the ledger", self.queue.qsize())
        yield gauge("energy2go_wal_bytes", "Size of SQLite's log", self.store.log_size)
        if self.pending:
            count, oldest = self.pending
            age = max(0, self.clock.wall() - oldest) / SECOND if oldest else 0
            yield gauge("energy2go_pending_transactions", "Transactions that are PENDING", count)
            yield gauge(
                "energy2go_oldest_pending_seconds", "Age of the oldest PENDING transaction, or 0", age
            )
