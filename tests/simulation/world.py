"""A world in one thread: processes with the real ledger, listener, store and events, and their surroundings.

Time is the world's. An event is data; `apply` does it, and one process takes a step. The same list of events
always gives the same run.
"""

import logging
import shutil
import sqlite3
import sys
from collections import deque
from random import Random
from zlib import crc32

import events
import models
from broker import BEHAVIOUR, GARBAGE, Broker
from follower import Follower
from kit import clock
from kit.clock import SECOND
from kit.errors import NotStored, OutcomeUnknown, Refusal
from kit.settings import Settings
from models import Draft
from process import Killed, Process
from rules import DAY, Rules, Violation
from schemas import Status, Transaction

BEGINNING = 1_800_000_000 * SECOND
BROKEN = {"job_failed", "callback_failed", "changes_failed"}  # lines of the log that tell of a bug
CALM = SECOND // 8  # between two steps of a world that behaves


class World:
    """`config` is the first of the events; `file` is an empty place, `template` a database to copy."""

    def __init__(self, config: dict, template: str, file: str):
        self.now, self.random = BEGINNING, Random(config["seed"])
        self.window, self.timeout = config["window"], config["timeout"] * SECOND
        self.retention, self.calm_equipment = config["retention"] * DAY, config["calm"]
        self.skewed, self.steps, self.applied, self.slept = False, 0, 0, 0
        self.trace, self.last, self.failures = 0, deque[str](maxlen=200), list[str]()
        shutil.copy(template, file)
        self.connection = sqlite3.connect(file, isolation_level=None)  # the world's own
        self.settings = Settings(
            database_url=f"sqlite:///{file}",
            validation_retry=config["retry"],
            validation_timeout=config["timeout"],
            retention_days=config["retention"],
        )
        events.PAGE, events.RECENT = config["page"], 5 * config["page"]
        models.WINDOW, models.CLAIM, clock.randbits = self.window, config["claim"], self.random.getrandbits
        self.rules, self.broker = Rules(self), Broker(self)
        self.offsets = [0] * config["processes"]
        self.processes: list[Process | None] = [None] * config["processes"]
        self.followers = [Follower(self, station) for station in (None, None, 1)]
        self.known: list[Transaction] = []  # to clients
        self.calm_since = sys.maxsize  # the step
        for number in range(config["processes"]):
            self.start(number)

    def note(self, process: Process | None, *what: object) -> None:
        """Add to the trace, by which two runs are compared."""
        line = f"{(self.now - BEGINNING) / SECOND:.3f} {process.number if process else '-'} {what}"
        self.trace = crc32(line.encode(), self.trace)
        self.last.append(line)

    def apply(self, event: list) -> None:
        """Do what an event says; then one process takes a step, and the equipment answers."""
        at, name, number, *values = event
        number %= len(self.processes)
        self.applied += 1
        self.now = max(self.now, BEGINNING + self.slept + at * 1000)
        process = self.processes[number]
        self.note(process, *event)
        if name == "start":
            self.start(number)
        elif name in BEHAVIOUR:
            self.broker.change(name, *values)
        elif process:
            getattr(self, name)(process, *values)
        self.step(number)

    def step(self, number: int, turns: int = 1) -> None:
        self.steps += 1
        self.broker.poll()
        if process := self.processes[number]:
            process.step(turns)
        if self.failures:
            raise Violation(self.failures[0])
        if self.steps % 1000 == 0:
            self.rules.everything()

    # Events: what clients do

    def time(self, process: Process) -> None:
        """Nothing else."""

    def create(self, process: Process, key: str | None, station: int) -> None:
        process.start(self._create(process, Draft(station, key)), 30)

    def burst(self, process: Process, count: int) -> None:
        for _ in range(count):
            self.create(process, None, 1)

    async def _create(self, process: Process, draft: Draft) -> None:
        self.rules.requests += draft.idempotency_key is None
        try:
            transaction = await process.ledger.create(draft)
        except NotStored:
            self.rules.refused(draft)
        except OutcomeUnknown:
            pass
        except Refusal as refusal:
            expected = draft.station_id > 2 or refusal.title == "Key used"
            self.rules.require(expected and refusal.status == 422, "a refusal has a reason", repr(refusal))
        else:
            self.note(process, "201", transaction.id)
            self.rules.answered(draft, transaction)
            self.known.append(transaction)

    def retry(self, process: Process, which: int) -> None:
        if self.known:
            process.start(self._retry(process, self.known[which % len(self.known)]), 30)

    async def _retry(self, process: Process, transaction: Transaction) -> None:
        try:
            self.rules.read(await process.ledger.retry(transaction.id))
        except Refusal as refusal:
            self.note(process, repr(refusal))

    def wait(self, process: Process, which: int, seconds: int) -> None:
        if self.known:
            waiting = self._wait(process, self.known[which % len(self.known)], seconds)
            process.start(waiting, seconds + 25)

    async def _wait(self, process: Process, transaction: Transaction, seconds: int) -> None:
        require, key, began = self.rules.require, transaction.id.hex, (self.now, self.steps)
        try:
            transaction = await process.read(models.get_transaction, transaction.id)
            transaction = await process.changes.wait(transaction, seconds)
        except Refusal as refusal:
            expected = refusal.status == 503 or key in self.rules.deleted
            require(expected, "what was answered 201 is found", refusal)
            return
        self.note(process, "waited", key, transaction.status)
        self.rules.read(transaction)
        early = transaction.status is Status.PENDING and self.now - began[0] < seconds * SECOND
        require(not early, "a wait ends with a verdict or its time", transaction)
        since, step = max(self.rules.settled.get(key, (self.now, self.steps)), began)
        # Before, and with small pages, the reader may have a long way to go.
        early = step < self.calm_since or events.PAGE < 100
        soon = early or self.now - since < 5 * SECOND or self.steps - step < 60
        require(soon, "a wait ends soon after the verdict", transaction)

    def follow(self, process: Process, which: int) -> None:
        self.followers[which].come(process)

    def leave(self, process: Process, which: int) -> None:
        self.followers[which].leave()

    # What befalls a process

    def kill(self, process: Process, calls: int) -> None:
        process.fuse = calls

    kill_soon = kill

    def start(self, number: int) -> None:
        if self.processes[number] is None:
            self.skewed |= bool(self.offsets[number])
            self.processes[number] = Process(self, number, self.offsets[number])

    def clock(self, process: Process, seconds: int) -> None:
        """The wall clock jumps to the true time and this."""
        self.offsets[process.number] = process.offset = seconds * SECOND

    def database(self, process: Process, fault: str, count: int) -> None:
        process.armed[fault] = count

    def leap(self, process: Process, hours: int) -> None:
        """The machine sleeps; clients that follow are cut off."""
        for follower in self.followers:
            follower.leave()
        self.skewed = True  # a process that was frozen does not know that its connection is dead
        self.slept += hours * 3600 * SECOND
        self.now += hours * 3600 * SECOND

    # What broker and equipment do

    def cut(self, process: Process, twice: bool) -> None:
        process.client.goodbyes, process.client.cut = 1 + twice, True

    def limits(self, process: Process, name: str, value: int) -> None:
        setattr(self.broker.limits, name, value if name == "ReceiveMaximum" else 0)

    def flow(self, process: Process, how: str) -> None:
        self.broker.flow[process.number] = how

    def answer(self, process: Process, which: int, other: bool) -> None:
        """Again, late, or differently."""
        if asked := self.broker.asked:
            self.broker.answer(asked[which % len(asked)], other)

    def garbage(self, process: Process, which: int) -> None:
        self.broker.publish(GARBAGE[which % len(GARBAGE)])

    def status(self, process: Process, name: str, status: str) -> None:
        self.broker.status(name, status)

    # The end

    def calm(self) -> None:
        """From now on the world behaves; everything must settle or expire in time."""
        self.calm_since = self.steps
        self.broker.behave()
        models.CLAIM = 500  # as in the product
        for client in self.broker.clients:
            client.cut |= client.receive_maximum < 20  # too slow for hundreds of questions
        for number, process in enumerate(self.processes):
            self.offsets[number] = 0
            self.start(number)
            if process:
                process.fuse = process.offset = 0
                process.armed.clear()
        pending = sum(len(process.tasks) for process in self.processes)
        pending += len(self.rules.pending)
        slow = pending > (20 if self.calm_equipment == "slow" else 3 * self.window)
        # "honest" if it would take hours of the world until all are answered
        self.broker.equipment = "honest" if slow else self.calm_equipment.replace("flapping", "silent")
        for process in self.processes:
            for which in range(-3, 0):
                self.wait(process, which, 30)
        until = later = self.now + self.timeout * -(-pending // self.window) + 60 * SECOND
        told = 0  # a follower may still read a long story, by small pages, when the last one has settled
        while (problem := self.unsettled()) and self.now < (later if "follower" in problem else until):
            for follower in self.followers:
                follower.come(self.processes[0])
            for number in [*range(len(self.processes))] * 5:
                self.now += CALM
                if self.calm_equipment == "flapping" and self.steps % 3 == 0:
                    self.broker.status("flapping", "online")
                self.step(number, turns=6)  # a loop turns more often than once in CALM
            before, told = told, sum(follower.place for follower in self.followers)
            later = later if told == before else max(until, self.now + 60 * SECOND)
        self.rules.require(not problem, f"in the end {problem}")
        self.rules.everything()

    def unsettled(self) -> str:
        """What is not done yet."""
        if self.rules.pending:
            return "questions are PENDING"
        for process in self.processes:
            if problem := process.ledger.problem or process.ledger.stuck:
                return problem
            if not process.listener.subscribed:  # `problem` may stay until a question is taken
                return "the listener is not subscribed"
            if any(seconds for _, seconds in process.tasks.values()):
                return "a request has no answer"
            if process.ledger._held or process.ledger.queue.qsize():
                return "the ledger has work"
            if process.client.outstanding:
                return "messages are not acknowledged"
        if any(follower.behind for follower in self.followers):
            return "a follower is behind"
        before = self.now - self.retention - SECOND
        ahead = self.rules.newest > self.now  # then nothing is deleted
        old = any(row.updated < before for row in self.rules.rows.values())
        if self.retention and not ahead and old:
            return "retention has work"
        return ""

    def close(self) -> None:
        for process in filter(None, self.processes):
            process.bury()
        self.connection.close()


class Log(logging.Handler):
    """A log of the last lines; lines that tell of a bug are failures of the world."""

    def __init__(self, world: World):
        super().__init__(logging.INFO)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.last.append(f"    {record.getMessage()}")
        if getattr(record, "event", "") in BROKEN and not isinstance(sys.exception(), Killed):
            self.world.failures.append(f"no bug is logged: {record.getMessage()}")
