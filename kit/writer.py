"""One thread that does every write: it runs a batch of jobs in one database transaction.

One commit, and so one fsync, serves the whole batch. No job learns its result before the commit.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, Full, SimpleQueue
from typing import Any, Self

from kit.errors import Unavailable
from kit.patience import waited
from kit.storage import LONGEST_WRITE, OPENING, InDoubt, NotWritten, Store, is_postgresql
from kit.trace import REQUEST

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a request waits until its job is taken, and that a commit may be in doubt
QUEUE = 10_000  # jobs that may wait
BATCH = 500  # jobs that one commit takes
UNKNOWN = "The outcome is unknown. Send the request again with the same Idempotency-Key."
NOT_WRITTEN = "The database cannot be written; nothing was stored: {}."


class Job:
    """One item for a batch function. After the commit, `then` and the waiting request get the result."""

    repeatable = False  # can it run again after a COMMIT that failed, whether or not it was stored?

    def __init__(self, function: Callable[..., Any], item: Any, then: Callable[[Any], None] | None = None):
        self.function, self.item, self.then = function, item, then
        self.result: Any = None
        self.request = REQUEST.get()  # the id of the request that waits for it
        self.in_doubt = False  # its COMMIT failed, so it may be stored
        self._taken, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()

    def take(self) -> bool:
        """True for the first caller: the writer, which runs the job, or the request, which withdraws it."""
        return self._taken.acquire(blocking=False)

    def finish(self, result: Any) -> None:
        """Hand over the result; an exception will be raised in the request."""
        self.result = result
        self._done.release()
        if self.then:
            self.then(result)

    def wait(self, seconds: float) -> bool:
        """Wait for the result; False if there is none after so many seconds."""
        return self._done.acquire(timeout=seconds)


class JobQueue(SimpleQueue[Job | None]):
    """Where jobs wait, at most QUEUE of them; None only wakes the writer."""

    def put(self, job: Job | None) -> None:  # type: ignore[override]
        """Raises queue.Full."""
        if self.qsize() >= QUEUE:
            raise Full
        super().put(job)


class Writer:
    """Runs the jobs of a queue while it is entered as a context manager.

    `order` are the batch functions in the order in which a batch runs them: each gets all items of its kind
    and returns a result for each. `clock` is in seconds and never jumps. `stopping` tells whether the
    process is about to stop. A subclass adds what belongs to a batch.
    """

    def __init__(
        self,
        store: Store,
        queue: JobQueue,
        order: Sequence[Callable[..., Any]],
        clock: Callable[[], float],
        stopping: Callable[[], bool],
    ):
        self.store, self.queue, self.order = store, queue, order
        self._clock, self.stopping = clock, stopping
        self._next_recovery = self._held_since = 0.0
        self._held: list[Job] = []  # repeatable jobs whose COMMIT is in doubt
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is still in the queue, and end the thread."""
        self._stopped = True
        with suppress(Full):  # then it is awake anyway
            self.queue.put(None)
        self._thread.join(3)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def stuck(self) -> str:
        """Says so if a write is taking too long."""
        since = self.store.writing_since
        return "a write takes too long" if since and time.monotonic() - since > LONGEST_WRITE else ""

    def run(self, job: Job) -> Any:
        """Hand over a job and wait for its result; after PATIENCE, withdraw it if it was not taken.

        What the request has waited for a slot counts, too.
        """
        if self._stopped:
            raise Unavailable("The service is stopping; nothing was stored.")
        if problem := self.store.problem.replace(OPENING, "") or self.stuck:
            raise Unavailable(NOT_WRITTEN.format(problem))
        try:
            self.queue.put(job)
        except Full:
            raise Unavailable("Too many requests are waiting; nothing was stored.") from None
        if not job.wait(max(0.0, PATIENCE - waited())):
            if job.take():
                raise Unavailable("The database was busy for too long; nothing was stored.")
            if not job.wait(PATIENCE):
                raise Unavailable(UNKNOWN)
        if isinstance(job.result, Exception):
            raise job.result
        return job.result

    # What a subclass says

    def patience(self) -> float:
        """How many seconds to wait for the first job of a batch."""
        return 1.0

    def timed(self, jobs: list[Job]) -> list[Job]:
        """What to run besides these jobs, because it is time."""
        return []

    def begin(self) -> Any:
        """What every batch function gets first; called inside the database transaction."""

    def committed(self, batch: Any, results: list[tuple[Job, Any]]) -> None:
        """Called after a commit, before the jobs get their results."""

    def failed(self) -> None:
        """Called after a database transaction that failed or is in doubt."""

    def dying(self) -> None:
        """Called before an exception ends the process."""

    # The thread

    def _work(self) -> None:
        try:
            while not (self._stopped and self.queue.empty()):
                self.step()
            finish(self._held, UNKNOWN)
        except BaseException:
            log.critical(
                "the ledger's thread died; the process ends", exc_info=True, extra={"event": "thread_died"}
            )
            # Fail jobs that have not started. Say nothing to jobs already in a batch: they may be committed.
            self._stopped = True
            finish(self._take(0), "The service restarts; nothing was stored.")
            self.dying()
            time.sleep(0.1)  # let the answers leave
            os._exit(1)  # not 3 or 4: gunicorn would halt instead of starting a new worker

    def step(self, patience: float | None = None) -> None:
        """Commit one batch, waiting at most `patience` seconds for its first job."""
        jobs = self._take(self.patience() if patience is None else patience)
        if self.store.problem and self._clock() >= self._next_recovery:
            self._recover()
        jobs += self.timed(jobs)
        if self.store.problem:
            finish(jobs, NOT_WRITTEN.format(self.store.problem))
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

    def _write(self, jobs: list[Job]) -> None:
        """Commit these jobs. If one of them raises, the batch is rolled back and each runs alone."""
        try:
            self._commit(jobs)
        except Exception as error:
            if len(jobs) == 1:
                log.exception("a job failed", extra={"event": "job_failed", "request": jobs[0].request})
                jobs[0].finish(error)
            else:
                for job in jobs:
                    self._write([job])

    def _commit(self, jobs: list[Job], again: bool = True) -> None:
        """Run these jobs in one database transaction, and hand over their results after its commit."""
        results, began = list[tuple[Job, Any]](), time.monotonic()
        try:
            with self.store.transaction():
                batch = self.begin()
                for function in self.order:
                    if group := [job for job in jobs if job.function is function]:
                        results += zip(group, function(batch, [job.item for job in group]), strict=True)
        except (NotWritten, InDoubt) as error:
            quick = time.monotonic() - began < LONGEST_WRITE
            if again and quick and isinstance(error, NotWritten) and is_postgresql(self.store.database):
                # A deadlock, or a connection that was lost while it was idle.
                self._commit(jobs, again=False)
            else:
                self._fail(jobs, error)
            return
        self.committed(batch, results)
        for job, result in results:
            job.finish(result)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """Tell jobs what is known. Hold those in doubt that can be repeated."""
        self.store.fail(str(error))
        self._next_recovery = self._clock() + 1
        self._held_since = self._held_since or self._clock()
        for job in jobs:
            job.in_doubt |= isinstance(error, InDoubt)
            if job.in_doubt and job.repeatable:
                self._held.append(job)
            else:
                finish([job], UNKNOWN if job.in_doubt else NOT_WRITTEN.format(error))
        self.failed()

    def _recover(self) -> None:
        """See whether the database can be written again; if so, run what is in doubt a second time."""
        self.store.recover()
        self._next_recovery = self._clock() + 1
        held, self._held = self._held, []
        late = self._clock() - self._held_since >= PATIENCE
        if late or (self.store.problem and self.stopping()):
            finish(held, UNKNOWN)
        elif self.store.problem:
            self._held = held
        elif held:
            self._write(held)
        self._held_since = self._held_since if self._held else 0.0


def finish(jobs: list[Job], detail: str) -> None:
    """Fail these jobs with a 503."""
    for job in jobs:
        job.finish(Unavailable(detail))
