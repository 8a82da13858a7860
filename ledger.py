"""The ledger: one thread that does every write. It commits all the jobs that wait, and then answers them.

One commit, and so one fsync, serves a whole batch; no job learns its result before it. A bad job only hurts
itself. `batch.py` has the jobs' work. We publish questions after the commit.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from prometheus_client import Histogram
from prometheus_client.core import Metric

import batch
from kit import metrics
from kit.clock import SECOND
from kit.errors import Locked, NotStored, OutcomeUnknown, Refusal
from kit.logs import REQUEST, Summary, end_the_process, note
from kit.settings import Settings
from kit.sql import LONGEST_WRITE, is_postgresql
from kit.storage import OPENING, InDoubt, NotWritten, Store
from kit.threads import hand_over, resolve
from models import FIRST, LOCKED, Draft, Timeouts
from schemas import Status, Transaction

if TYPE_CHECKING:  # it imports this module
    from mqtt_listener import Listener

log = logging.getLogger(__name__)
T = TypeVar("T")

JOB_TIMEOUT = 10.0  # seconds that a request waits until its job is taken, and that a commit may be in doubt
QUEUE = 10_000  # jobs that may wait before requests are refused; the listener limits its own
FIRST_PAUSE = SECOND // 10  # it doubles up to a second
BATCH = 500  # jobs that one commit takes
BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)  # seconds
DAY = 24 * 60 * 60 * SECOND
STOPPING = "The service is stopping; nothing was stored."
NOT_WRITTEN = "The database cannot be written; nothing was stored: {}."
ROUNDS_FAIL = "the round that expires questions and asks again has failed three times; see the log"
FULL = "Too many requests are waiting; nothing was stored."
BUSY = "The database was busy for too long; nothing was stored."
UNKNOWN = "The outcome is unknown."  # `kit.api` adds advice, since that depends on the route


class Job:
    """One item for a batch function. After the commit `then` is called, and the request gets the result."""

    def __init__(self, function: Callable[..., Any], item: Any, then: Callable[[Any], None] | None = None):
        self.function, self.item, self.then = function, item, then
        self.result: Any = None
        self.request = REQUEST.get()  # the id of the request that waits for it
        self.future: asyncio.Future[Any] | None = None  # of that request
        self.in_doubt = False  # its COMMIT failed, so it may be stored
        self._taken = threading.Lock()

    def take(self) -> bool:
        """True for the first caller: the ledger, which runs the job, or the request, which withdraws it."""
        return self._taken.acquire(blocking=False)

    @property
    def taken(self) -> bool:
        return self._taken.locked()


JobQueue = SimpleQueue[Job | None]  # None only wakes the ledger


class Ledger:
    """The single writer, which runs while it is entered as a context manager.

    `changed` is called after each status change. `stopping` is when SIGTERM came, or 0.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        queue: JobQueue,
        listener: "Listener",
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], None] = lambda: None,
    ):
        self.store, self.queue, self.listener, self.clock = store, queue, listener, store.clock
        self._loop, self._changed = loop, changed
        retry, timeout = settings.validation_retry * SECOND, settings.validation_timeout * SECOND
        self.timeouts = Timeouts(round(retry), round(timeout), settings.retention_days * DAY)
        self.counts: Counter[str] = Counter()  # since the start: statuses, verdicts by kind, questions
        name, text = "energy2go_verdict_seconds", "Question to verdict"
        self.delays = Histogram(name, text, registry=None, buckets=DELAYS)
        self.sizes = Histogram("energy2go_batch_jobs", "Jobs in a batch", registry=None, buckets=BATCH_SIZES)
        self.stopping = 0
        self.session, self.deleted = 0, FIRST  # see Batch
        self._newest = 0  # no transaction is newer
        self._behind = False  # the wall clock is behind that
        self._deletions = Summary(log.info, "transactions_deleted", "%(count)d transactions were deleted")
        expired = "%(count)d questions expired without an answer"
        self._expirations = Summary(log.warning, "questions_expired", expired)
        self._next_round = self._next_attempt = self._failed_rounds = 0
        self._pause = FIRST_PAUSE  # until we look again whether the database can be written
        self._held: list[Job] = []  # verdicts that can't be stored now, and creations in doubt
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Work off the queue, and end the thread."""
        self._stopped = True
        self.queue.put(None)
        # gunicorn kills us 3 s after SIGTERM, and connections must be closed before.
        left = 2.2 - (self.clock.steady() - self.stopping) / SECOND
        self._thread.join(max(0.1, left) if self.stopping else 3)

    @property
    def problem(self) -> str:
        """Why the ledger can't write now; empty if it can."""
        since = self.store.writing_since
        slow = bool(since) and self.clock.steady() - since > LONGEST_WRITE * SECOND
        return self.store.problem or ("a write takes too long" if slow else "")

    @property
    def stuck(self) -> str:
        """Why questions are neither asked again nor expire; empty if they do."""
        return ROUNDS_FAIL if self._failed_rounds >= 3 else ""

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
        transaction: Transaction = await self._run(Job(batch.create, draft))
        return transaction

    async def retry(self, transaction_id: UUID) -> Transaction:
        """Ask about an EXPIRED transaction again; raises NotFound, Conflict or Unavailable."""
        transaction: Transaction = await self._run(Job(batch.retry, transaction_id))
        return transaction

    async def change(self, function: Callable[..., T], *values: Any) -> T:
        """Call a function in `models` that writes. Returns its result, or raises its exception."""
        result: T = await self._run(Job(batch.change, lambda database: function(database, *values)))
        return result

    async def _run(self, job: Job) -> Any:
        """Hand over a job and wait for its result; after JOB_TIMEOUT, withdraw it unless it was taken."""
        if self._stopped:
            raise NotStored(STOPPING)
        if problem := self.problem.replace(OPENING, ""):
            raise NotStored(NOT_WRITTEN.format(problem))
        if self.queue.qsize() >= QUEUE:
            raise NotStored(FULL)
        job.future = self._loop.create_future()
        self.queue.put(job)
        timer = self._loop.call_later(JOB_TIMEOUT, self._withdraw, job.future, job)
        try:
            return await job.future
        finally:
            timer.cancel()

    def _withdraw(self, future: asyncio.Future[Any], job: Job) -> None:
        """The request has waited for JOB_TIMEOUT. It waits once more if its job is being committed."""
        if job.take():
            resolve([(future, NotStored(BUSY))])
        else:
            more = 0 if job.in_doubt else JOB_TIMEOUT
            self._loop.call_later(more, resolve, [(future, OutcomeUnknown(UNKNOWN))])

    # The thread

    def _work(self) -> None:
        try:
            while not (self._stopped and self.queue.empty()):
                self.step()
            self._refuse(self._held, UNKNOWN)
        except BaseException as error:
            try:
                # Fail jobs that haven't started. Leave jobs in a batch unanswered: they may be committed.
                self._stopped = True
                self._refuse(self._take(0), "The service restarts; nothing was stored.")
                time.sleep(0.1)  # let the answers leave
            finally:
                end_the_process("the ledger's thread died", error)

    def step(self, patience: float | None = None) -> None:
        """Commit one batch, waiting at most `patience` seconds for its first job."""
        if patience is None:
            waiting = self._next_attempt if self.store.problem or self._held else self._next_round
            patience = (min(self._next_round, waiting) - self.clock.steady()) / SECOND
        jobs = self._take(patience)
        if (self.store.problem or self._held) and self.clock.steady() >= self._next_attempt:
            jobs += self._recover()
        jobs += self._due(jobs)
        if self.store.problem:
            self._fail(jobs, NotWritten(self.store.problem))
        elif jobs:
            self._write(jobs)

    def _take(self, patience: float) -> list[Job]:
        """The jobs for the next batch, except withdrawn ones."""
        jobs: list[Job] = []
        with suppress(Empty):
            while len(jobs) < BATCH:
                job, patience = self.queue.get(timeout=max(0, patience)), 0
                if job and job.take():
                    jobs.append(job)
        return jobs

    def _due(self, jobs: list[Job]) -> list[Job]:
        """Jobs of our own that are due now, besides these."""
        clock = self.clock.steady()
        if clock < self._next_round and not any(job.function is batch.ask_again for job in jobs):
            return []
        if not self.listener.alive:
            raise RuntimeError("the MQTT thread died")
        self.listener.watch()
        self._next_round = clock + min(batch.ROUND, self.timeouts.retry // 2)
        if self.store.problem:
            return []
        session = self.listener.session
        lost = self.listener.subscribed and self.session < session
        again = [Job(batch.ask_again, session)] if lost else []
        retention = [Job(batch.delete_old, None)] if self.timeouts.retention else []
        return [*again, Job(batch.look_after, None), *retention]

    def _write(self, jobs: list[Job]) -> None:
        """Commit these jobs. If one of them raises, the batch is rolled back and each runs alone."""
        try:
            self._commit(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._write([job])
                return
            (job,) = jobs
            if job.in_doubt and isinstance(error, Locked):  # its first COMMIT may have stored it
                self._hold(job)
                return
            self._failed_rounds += job.function is batch.look_after
            if not isinstance(error, Refusal):
                about = {"event": "job_failed", "request": job.request}
                log.error("a job failed: %r", error, exc_info=error, extra=about)
            self._answer([(job, error)])

    def _commit(self, jobs: list[Job], again: bool = True) -> None:
        """Run these jobs in one database transaction, and hand over their results after its commit."""
        results, began = list[tuple[Job, Any]](), self.clock.steady()
        try:
            with self.store.transaction():
                work = batch.Batch(self)
                for function in batch.ORDER:
                    if group := [job for job in jobs if job.function is function]:
                        found = function(work, [job.item for job in group]) or [None] * len(group)
                        results += zip(group, found, strict=True)
        except (NotWritten, InDoubt) as error:
            quick = self.clock.steady() - began < LONGEST_WRITE * SECOND
            if again and quick and isinstance(error, NotWritten) and is_postgresql(self.store.database):
                # The connection was lost while it was idle.
                self._commit(jobs, again=False)
            else:
                self.store.fail(str(error))
                self.session = 0
                self._fail(jobs, error)
            return
        self.session, self.deleted = work.session, work.deleted
        self._next_round = 0 if work.more else self._next_round
        self._note(work, results)
        # These wake other threads, so they come last, when this one is about to sleep.
        self.listener.publish(work.questions)
        self._answer(results)
        if work.events:
            self._changed()

    def _note(self, work: batch.Batch, results: list[tuple[Job, Any]]) -> None:
        """Count and log a batch."""
        self.counts.update(work.counts)
        for delay in work.delays:
            self.delays.observe(delay / SECOND)
        functions = [job.function for job, _ in results]
        if batch.look_after in functions:
            self._failed_rounds = 0
            self._deletions.add(work.counts["deleted"], work.clock)
            self._expirations.add(work.counts[Status.EXPIRED], work.clock)
        if size := len(functions) - functions.count(batch.look_after) - functions.count(batch.delete_old):
            self.sizes.observe(size)
        if log.isEnabledFor(logging.DEBUG):
            requests = {one.id: job.request for job, one in results if isinstance(one, Transaction)}
            for state, key in work.events:
                event, text = f"transaction_{state.lower()}", f"%(transaction)s is {state}"
                note(log.debug, event, text, transaction=key, request=requests.get(key))
        self._newest = work.now
        if work.behind > batch.BEHIND and not self._behind:
            text = "the newest transaction is %(seconds)d s ahead of the clock: "
            text += "times stand still, and nothing is deleted"
            note(log.warning, "clock_behind", text, seconds=work.behind // SECOND)
        self._behind = work.behind > batch.BEHIND

    def _answer(self, results: list[tuple[Job, Any]]) -> None:
        """Hand over results, to the requests that wait with one call for all."""
        waiting = []
        for job, result in results:
            if job.function is batch.settle and (result == LOCKED or isinstance(result, NotStored)):
                self._hold(job)
                continue
            job.result = result
            if job.then:
                job.then(result)
            if job.future:
                waiting.append((job.future, result))
        if waiting:
            hand_over(self._loop, waiting)

    # When the database can't be written

    def _fail(self, jobs: list[Job], error: NotWritten | InDoubt) -> None:
        """Refuse the requests that are known not to be stored. Hold verdicts, and creations in doubt."""
        for job in jobs:
            job.in_doubt |= isinstance(error, InDoubt)
            if job.function is batch.settle or (job.in_doubt and job.function is batch.create):
                self._hold(job)
            else:
                self._refuse([job], UNKNOWN if job.in_doubt else NOT_WRITTEN.format(error))

    def _hold(self, job: Job) -> None:
        """Try this job again within a second."""
        if not self._held:
            self._next_attempt = self.clock.steady() + (self._pause if self.store.problem else SECOND)
        self._held.append(job)

    def _recover(self) -> list[Job]:
        """Find out whether we can write again; if so, return the held jobs, to be written."""
        self._next_attempt = self.clock.steady() + self._pause
        if self.store.problem:
            self.store.recover()
        self._pause = min(2 * self._pause, SECOND) if self.store.problem else FIRST_PAUSE
        held = [job for job in self._held if not (job.future and job.future.done())]  # those had a 503
        self._held = held if self.store.problem else []
        if self.store.problem and self.stopping:
            self._refuse(held, UNKNOWN)
        return [] if self.store.problem else held

    def _refuse(self, jobs: list[Job], detail: str) -> None:
        """Answer the requests that wait for these jobs with 503. A verdict stays unacknowledged."""
        kind = OutcomeUnknown if detail == UNKNOWN else NotStored
        hand_over(self._loop, [(job.future, kind(detail)) for job in jobs if job.future])

    def collect(self) -> Iterator[Metric]:
        """The ledger's metrics, for Prometheus."""
        counts, counter, gauge = self.counts, metrics.counter, metrics.gauge
        statuses = {status.value: counts[status] for status in Status}
        yield counter("energy2go_transactions", "Transactions that became", statuses, "status")
        kinds = {kind: counts[kind] for kind in ("settled", "late", "duplicate", "contradiction", "unknown")}
        kinds["unreadable"] = self.listener.unreadable
        yield counter("energy2go_verdicts", "Verdicts, by outcome", kinds, "kind")
        times = {"first": counts["first"], "again": counts["again"]}
        yield counter("energy2go_questions", "Questions asked, for the first time or again", times, "time")
        yield from self.delays.collect()
        yield from self.sizes.collect()
        yield counter("energy2go_deleted", "Transactions that retention deleted", counts["deleted"])
        behind = max(0, self._newest - self.clock.wall()) / SECOND
        yield gauge("energy2go_clock_behind_seconds", "How far the newest transaction is ahead", behind)
        yield gauge("energy2go_queue_jobs", "Jobs that wait for the ledger", self.queue.qsize())
        yield gauge("energy2go_held_jobs", "Verdicts and creations that wait to be stored", len(self._held))
