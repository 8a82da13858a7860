"""The one writer: a thread that drains one queue, commits a batch at a time, and asks again what nobody answered.

Requests and verdicts hand their writes to this thread. One batch is one database transaction, so one fsync serves
everybody who was waiting. Only after the commit do requests get their answer, questions get published and verdicts get
acknowledged. Between batches the same thread expires what is late and asks again what is due.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Protocol
from uuid import UUID

from peewee import InterfaceError, OperationalError
from prometheus_client import Histogram
from uuid_utils.compat import uuid7

import models
import storage
from jobs import Call, Creation, Job, Unavailable, Verdict
from schemas import Status, Transaction
from settings import Settings
from waiters import Waiters

log = logging.getLogger(__name__)

BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)  # seconds
PATIENCE = 10 * models.SECOND  # how long a request waits for its job to be taken
QUEUE = 10_000  # jobs that may wait; a batch takes up to BATCH of them
BATCH = 500
ROUND = models.SECOND // 4  # how often what is late or due is looked for
LOOK = models.SECOND // 10  # how often verdicts that another process stored are looked for


def ledger_clock(wall=time.time_ns, monotonic=time.monotonic_ns) -> Callable[[], int]:
    """A clock in microseconds since 1970 that starts at the wall clock's time and then ignores its steps."""
    offset = wall() - monotonic()
    return lambda: (offset + monotonic()) // 1000


class Wire(Protocol):
    """What the ledger knows of MQTT: the listener."""

    alive: bool  # False once its thread has died

    def publish(self, questions: Iterable[models.Question]) -> None:
        """Ask these, if connected; raises nothing."""


class Ledger:
    """Made empty; `start` binds it. `counts` says how many verdicts of which kind came, and how many questions went."""

    def __init__(self):
        self._thread = None

    def start(
        self,
        settings: Settings,
        wire: Wire,
        clock: Callable[[], int] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Open the database and write, in a thread of its own, until `stop`; `stopping` tells waiters to give up."""
        self.prepare(settings, wire, clock, stopping)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def prepare(self, settings, wire, clock=None, stopping=lambda: False) -> None:
        """Everything that `start` does but the thread, for whoever calls `step` by hand."""
        self.counts = Counter()  # since the start: statuses, kinds of verdicts, questions
        self.delays = Histogram("energy2go_verdict_seconds", "From creation to verdict", registry=None, buckets=DELAYS)
        self.batches = Histogram("energy2go_batch_jobs", "Jobs in a batch", registry=None, buckets=BATCHES)
        self.subscribed = False  # somebody could answer: set by the listener
        self.refused = False  # the broker refuses what is published: set by the listener
        self._clock = clock or ledger_clock()
        self._clocks = models.Clocks(
            round(settings.validation_retry * models.SECOND), round(settings.validation_timeout * models.SECOND)
        )
        self._wire, self._stopping = wire, stopping
        self._queue = SimpleQueue()
        self._rearm = threading.Event()
        self._rearm.set()  # a restart may have lost what was under way
        self._room = 0  # questions that may be opened; never more than models.room() says
        # A commit that is in doubt holds its requests until the database is back; two threads stay free to say so.
        self._creations = max(1, settings.threads - 2) if storage.remote() else BATCH
        self._next_round = self._next_look = 0
        self.waiters = Waiters(settings.threads // 2)
        self._stopped = False

    def stop(self) -> None:
        """Write what is still in the queue and end the thread."""
        if self._thread:
            self._stopped = True
            self._queue.put(None)
            self._thread.join(3)
            self._thread = None

    @property
    def queued(self) -> int:
        """How many jobs wait."""
        return self._queue.qsize()

    def now(self) -> int:
        """The ledger's time, in microseconds."""
        return self._clock()

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    # What requests call

    def create(self, station_id: int, idempotency_key: str | None) -> Transaction:
        """Store a new transaction as PENDING; raises models.Unprocessable, Unavailable."""
        return self._wait_for(Creation(models.Order(uuid7(), station_id, idempotency_key)))

    def change(self, function: Callable, *arguments):
        """Run a function of `models` that writes, and return what it returns or raise what it raises."""
        return self._wait_for(Call(function, *arguments))

    def _wait_for(self, job: Job):
        if self._stopped or self._queue.qsize() >= QUEUE:
            raise Unavailable("The service is stopping." if self._stopped else "Too many requests wait already.")
        self._queue.put(job)
        deadline = self._clock() + PATIENCE
        while not job.done():
            try:
                return job.result(timeout=0.25)
            except TimeoutError:
                # Either this withdraws the job, or the thread has taken it and will answer.
                if self._clock() >= deadline and job.cancel():
                    raise Unavailable("The database was busy for too long; nothing was stored.") from None
        return job.result()

    # What the listener calls

    def settle(self, verdict: Verdict) -> None:
        """Take a verdict; a full queue drops it, since its question will be asked again."""
        if self._queue.qsize() < QUEUE:
            self._queue.put(verdict)
        else:
            verdict.acknowledge()

    def rearm(self) -> None:
        """What was asked may be lost: let everything PENDING be asked again, its clock starting with that."""
        self._rearm.set()
        self._next_round = 0
        self._queue.put(None)

    # The thread

    def _run(self) -> None:
        try:
            while not self._open():
                time.sleep(1)
            while not (self._stopped and self._queue.empty()):
                self.step()
            storage.close()
        except BaseException:
            log.critical("the ledger's thread died, the process ends", exc_info=True)
            self._give_up()
            # Not 3 and not 4: with those gunicorn would halt instead of starting a new worker.
            os._exit(1)

    def _open(self) -> bool:
        try:
            storage.migrate()
        except (*storage.ERRORS, OSError) as error:
            self._failed("cannot be opened", error)
            return self._stopped
        return True

    def _give_up(self) -> None:
        """Tell those whose job was not taken that it never will be; whoever's was taken must not be told anything."""
        self._stopped = True
        while not self._queue.empty():
            job = self._queue.get()
            if isinstance(job, Job) and not job.running() and job.take():
                job.set_exception(Unavailable("The service restarts; nothing was stored."))
        self.waiters.wake(self.waiters.keys())
        time.sleep(0.1)  # for their answers to leave

    def step(self, patience: float | None = None) -> None:
        """Commit one batch, waiting for its first job until something is due; then do what is due."""
        jobs = self._take(self._until_due() if patience is None else patience)
        if jobs:
            self._write(jobs)
        now = self._clock()
        if now >= self._next_round:
            self._next_round = now + min(ROUND, self._clocks.retry // 2)
            self._round(now)
        if self.waiters.keys() and now >= self._next_look:
            self._next_look = now + LOOK
            self._look()

    def _until_due(self) -> float:
        due = min(self._next_round, self._next_look) if self.waiters.keys() else self._next_round
        return max(0, due - self._clock()) / models.SECOND

    def _take(self, patience: float) -> list[Job | Verdict]:
        jobs, creations = [], 0
        try:
            job = self._queue.get(timeout=patience) if patience else self._queue.get_nowait()
            while True:
                if isinstance(job, Verdict) or (job and job.take()):
                    jobs.append(job)
                    creations += isinstance(job, Creation)
                if len(jobs) == BATCH or creations == self._creations:
                    break
                job = self._queue.get_nowait()
        except Empty:
            pass
        return jobs

    def _write(self, jobs: list[Job | Verdict]) -> None:
        """Commit these jobs, then publish, answer and acknowledge; a job that cannot be stored fails alone."""
        verdicts = [job for job in jobs if isinstance(job, Verdict)]
        calls = [job for job in jobs if isinstance(job, Call)]
        creations = [job for job in jobs if isinstance(job, Creation)]
        now, committing = self._clock(), False
        try:
            with storage.writing():
                changed, kinds = self._judge(verdicts, now)
                results = [call.outcome() for call in calls]
                room = self._room_for(len(creations))
                created, questions = models.create_transactions([c.order for c in creations], now, self._clocks, room)
                committing = storage.remote()
        except (OperationalError, InterfaceError) as error:
            self._failed("cannot be written", error)
            if storage.collided(error):
                self._write(jobs)
            else:
                stored = "whether this was stored is unknown" if committing else "nothing was stored"
                self._fail(jobs, Unavailable(f"The database cannot be written; {stored}."), committing)
        except Exception as error:
            if len(jobs) == 1:
                log.exception("a job cannot be stored")
                self._fail(jobs, error)
            else:
                for job in jobs:
                    self._write([job])
        else:
            self._room -= len(questions)
            self.batches.observe(len(jobs))
            self._count(creations, created, changed, kinds)
            self._ask(questions, "asked")  # before the answers, since the equipment can work on them meanwhile
            for job, result in zip(calls + creations, results + created, strict=True):
                job.answer(result)
            for verdict in verdicts:
                verdict.acknowledge()
            self.waiters.wake(changed)

    def _judge(self, verdicts: list[Verdict], now: int) -> tuple[dict[UUID, models.Settled], list[str]]:
        """Settle these verdicts, the first one of each transaction; what that changed, and what each was worth."""
        first = {}
        for verdict in verdicts:
            first.setdefault(verdict.transaction_id, verdict)
        changed = models.settle({key: verdict.status for key, verdict in first.items()}, now)
        kinds = ["late" if settled.late else "settled" for settled in changed.values()]
        kinds += [first[key].status for key in changed]
        others = [v for v in verdicts if v.transaction_id not in changed or first[v.transaction_id] is not v]
        stored = models.statuses({v.transaction_id for v in others}) if others else {}
        for verdict in others:
            status = stored.get(verdict.transaction_id)
            kinds.append("unknown" if status is None else "duplicate" if status is verdict.status else "contradiction")
        return changed, kinds

    def _count(self, creations: list, created: list, changed: dict[UUID, models.Settled], kinds: list) -> None:
        answers = zip(creations, created, strict=True)
        for job, answer in answers:
            if isinstance(answer, Transaction) and answer.id == job.order.transaction_id:
                self.counts[Status.PENDING] += 1
                log.debug("%(transaction)s is stored", {"transaction": answer.id})
        self.counts.update(kinds)
        for key, settled in changed.items():
            self.delays.observe(settled.age / models.SECOND)
            log.debug("%(transaction)s has its verdict after %(age)s µs", {"transaction": key, "age": settled.age})

    def _fail(self, jobs: list[Job | Verdict], error: Exception, committing: bool = False) -> None:
        for job in jobs:
            if isinstance(job, Verdict):
                job.acknowledge()  # not stored, so its question will be asked again
            elif isinstance(job, Creation) and (committing or job.in_doubt):
                # It may be stored, so nobody may be told that it is not. Storing it again settles that.
                job.in_doubt = True
                self._queue.put(job)
            else:
                job.set_exception(error)
        self._rearm.set()

    def _failed(self, what: str, error: Exception) -> None:
        log.error("the database %s: %s", what, error)
        storage.close()
        time.sleep(0.05)  # so that trying again does not keep a processor busy

    def _room_for(self, wanted: int) -> int:
        """How many of `wanted` questions may be asked at once."""
        if not self.subscribed or self.refused:
            return 0
        if self._room < wanted:
            self._room = models.room()
        return min(self._room, wanted)

    def _round(self, now: int) -> None:
        """Expire what is late, ask again what is due, and open questions for those that wait."""
        if not self._wire.alive:
            raise RuntimeError("the MQTT thread died")
        if not self.subscribed:
            return
        rearm = self._rearm.is_set()
        if rearm:
            self._rearm.clear()  # before the work, so that a call that comes meanwhile counts again
        # While the broker refuses what is published, one question at a time finds out whether it still does.
        limit = 1 if self.refused else models.CLAIM
        try:
            with storage.writing():
                if rearm or self.refused:
                    models.rearm(now)
                expired = [] if self.refused else models.expire(now)
                questions = models.claim(now, self._clocks, limit)
                room = limit if self.refused else self._room_for(limit)
                opened = models.claim(now, self._clocks, room, waiting=True)
        except storage.ERRORS as error:
            if rearm or not storage.collided(error):
                self._rearm.set()
            self._failed("cannot be written", error)
        else:
            if self.refused:
                self._next_round = now + self._clocks.retry
            elif len(opened) == limit:
                self._next_round = now
            self._room -= len(opened)
            self.counts[Status.EXPIRED] += len(expired)
            self._ask(questions, "asked again")
            self._ask(opened, "asked")
            self.waiters.wake(expired)

    def _ask(self, questions: list[models.Question], kind: str) -> None:
        if questions:
            self.counts[kind] += len(questions)
            self._wire.publish(questions)

    def _look(self) -> None:
        """Wake those whose verdict another process stored."""
        keys = self.waiters.keys()
        try:
            statuses = {} if self._stopping() else models.statuses(keys)
        except storage.ERRORS as error:
            self._failed("cannot be read", error)
        else:
            self.waiters.wake(key for key in keys if statuses.get(key) is not Status.PENDING)
