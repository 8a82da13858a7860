"""A world in one thread: processes with the real ledger, listener, store and events, and their surroundings.

Time is the world's. An event is data; `apply` does it, and one process takes a step. The same list of events
always gives the same run.
"""

import logging
import sys
from collections import deque
from random import Random
from zlib import crc32

import events
import models
from broker import BEHAVIOUR, GARBAGE, Broker, Equipment
from database import copy
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
        self.connection = copy(template, file)
        self.settings = Settings(
            database_url=f"sqlite:///{file}",
            validation_retry=config["retry"],
            validation_timeout=config["timeout"],
            retention_days=config["retention"],
        )
        events.PAGE, events.RECENT = config["page"], 5 * config["page"]
        models.WINDOW, models.CLAIM, clock.randbits = self.window, config["claim"], self.random.getrandbits
        self.rules, self.broker, self.machine = Rules(self), Broker(self), Equipment(self)
        self.offsets = [0] * config["processes"]
        self.processes: list[Process | None] = [None] * config["processes"]
        self.followers = [Follower(self, station) for station in (None, None, 1)]
        self.known: list[Transaction] = []  # to clients
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
        self.applied += 1
        self.now = max(self.now, BEGINNING + self.slept + at * 1000)
        number %= len(self.processes)
        self.note(self.processes[number], *event)
        if name in BEHAVIOUR:
            self.broker.change(name, *values)
        else:
            getattr(self, name)(number, *values)
        self.step(number)

    def step(self, number: int) -> None:
        self.steps += 1
        self.machine.poll()
        if process := self.processes[number]:
            process.step()
        if self.failures:
            raise Violation(self.failures[0])
        if self.steps % 1000 == 0:
            self.rules.everything()

    # Events: what clients do

    def time(self, number: int) -> None:
        """Nothing else."""

    def create(self, number: int, key: str | None, station: int) -> None:
        if process := self.processes[number]:
            process.start(self._create(process, Draft(station, key)), 25)

    def burst(self, number: int, count: int) -> None:
        for _ in range(count):
            self.create(number, None, 1)

    async def _create(self, process: Process, draft: Draft) -> None:
        self.rules.requests += draft.idempotency_key is None
        try:
            transaction = await process.ledger.create(draft)
        except NotStored:
            self.rules.refused(draft)
        except OutcomeUnknown:
            pass
        except Refusal as refusal:
            self.rules.require(refusal.status == 422, "a refusal has a reason", repr(refusal))
            self.rules.require(
                refusal.title == "Key used" or draft.station_id > 2, "stations exist", refusal
            )
        else:
            self.note(process, "201", transaction.id)
            self.rules.answered(draft, transaction)
            self.known.append(transaction)

    def retry(self, number: int, which: int) -> None:
        if self.known and (process := self.processes[number]):
            process.start(self._retry(process, self.known[which % len(self.known)]), 25)

    async def _retry(self, process: Process, transaction: Transaction) -> None:
        try:
            self.rules.read(await process.ledger.retry(transaction.id))
        except Refusal as refusal:
            self.note(process, repr(refusal))

    def wait(self, number: int, which: int, seconds: int) -> None:
        if self.known and (process := self.processes[number]):
            process.start(self._wait(process, self.known[which % len(self.known)], seconds), seconds + 20)

    async def _wait(self, process: Process, transaction: Transaction, seconds: int) -> None:
        began = self.now
        try:
            transaction = await process.read(models.get_transaction, transaction.id)
            transaction = await process.changes.wait(transaction, seconds)
        except Refusal as refusal:
            deleted = transaction.id.hex in self.rules.deleted
            self.rules.require(refusal.status == 503 or deleted, "what was answered 201 is found", refusal)
            return
        self.note(process, "waited", transaction.id, transaction.status)
        self.rules.read(transaction)
        early = transaction.status is Status.PENDING and self.now - began < seconds * SECOND
        self.rules.require(not early, "a wait ends with a verdict or its time", transaction)

    def follow(self, number: int, which: int) -> None:
        if process := self.processes[number]:
            self.followers[which % 3].come(process)

    def leave(self, number: int, which: int) -> None:
        self.followers[which % 3].leave()

    # What befalls a process

    def kill(self, number: int, calls: int) -> None:
        if process := self.processes[number]:
            process.fuse = calls

    kill_soon = kill

    def start(self, number: int) -> None:
        if self.processes[number] is None:
            self.skewed |= bool(self.offsets[number])
            self.processes[number] = Process(self, number, self.offsets[number])

    def clock(self, number: int, seconds: int) -> None:
        """The wall clock jumps to the true time and this."""
        self.offsets[number] = seconds * SECOND
        if process := self.processes[number]:
            process.clock.offset = self.offsets[number]

    def database(self, number: int, kind: str, count: int) -> None:
        if process := self.processes[number]:
            process.armed[kind] = count

    def leap(self, number: int, hours: int) -> None:
        """The machine sleeps; clients that follow are cut off."""
        for follower in self.followers:
            follower.leave()
        self.skewed = True  # a process that was frozen does not know that its connection is dead
        self.slept += hours * 3600 * SECOND
        self.now += hours * 3600 * SECOND

    # What broker and equipment do

    def cut(self, number: int, twice: bool) -> None:
        if (process := self.processes[number]) and process.listener._client.link:
            process.listener._client.goodbyes = 1 + twice
            process.listener._client.link.cut = True

    def limits(self, number: int, name: str, value: int) -> None:
        setattr(self.broker.limits, name, value if name == "ReceiveMaximum" else 0)

    def flow(self, number: int, how: str) -> None:
        self.broker.flow[number] = how

    def answer(self, number: int, which: int, other: bool) -> None:
        """Again, late, or differently."""
        if self.machine.asked:
            self.machine.answer(self.machine.asked[which % len(self.machine.asked)], other)

    def equipment(self, number: int, mode: str) -> None:
        self.machine.mode = mode

    def garbage(self, number: int, which: int) -> None:
        self.broker.verdict(GARBAGE[which % len(GARBAGE)])

    def status(self, number: int, name: str, status: str) -> None:
        self.broker.status(name, status)

    # The end

    def calm(self) -> None:
        """From now on the world behaves; everything must settle or expire in time."""
        self.broker.behave()
        models.CLAIM = 500  # as in the product
        for link in self.broker.links:
            link.cut |= link.receive_maximum < 20  # too slow for hundreds of questions
        self.machine.mode = self.calm_equipment if self.calm_equipment in ("honest", "slow") else "silent"
        for number, process in enumerate(self.processes):
            self.clock(number, 0)
            if process:
                process.fuse = 0
                process.armed.clear()
            self.start(number)
        pending = sum(len(process.tasks) for process in self.processes)
        pending += sum(row.status == "PENDING" for row in self.rules.rows.values())
        if pending > 3 * self.window or (self.machine.mode == "slow" and pending > 20):
            self.machine.mode = "honest"  # it would take hours of the world until all are answered
        until = self.now + self.timeout * -(-pending // self.window) + 60 * SECOND
        # A follower may still read a long story, by small pages, when the last one has settled.
        while (problem := self.unsettled()) and self.now < until + 3600 * SECOND * ("follower" in problem):
            for follower in self.followers:
                follower.come(self.processes[0])
            for number in [*range(len(self.processes))] * 5:
                self.now += CALM
                if self.calm_equipment == "flapping" and self.steps % 3 == 0:
                    self.broker.status("flapping", "online")
                self.step(number)
                for _ in range(5):  # a loop turns more often than once in CALM
                    self.processes[number].loop.turn()
        self.rules.require(not problem, f"in the end {problem}")
        self.rules.everything()

    def unsettled(self) -> str:
        """What is not done yet."""
        rows = self.rules.rows.values()
        if any(row.status == "PENDING" for row in rows):
            return "questions are PENDING"
        for process in self.processes:
            if problem := process.ledger.problem or process.ledger.stuck:
                return problem
            if not process.listener.subscribed:  # `problem` may stay until a question is taken
                return "the listener is not subscribed"
            if any(process.tasks.values()):
                return "a request has no answer"
            if process.ledger._held or process.ledger.queue.qsize():
                return "the ledger has work"
            if process.listener._client.link.outstanding:
                return "messages are not acknowledged"
        if any(follower.story.behind for follower in self.followers):
            return "a follower is behind"
        before = self.now - self.retention - SECOND
        ahead = self.rules.newest > self.now  # then nothing is deleted
        if self.retention and not ahead and any(row.updated < before for row in rows):
            return "retention has work"
        return ""

    def close(self) -> None:
        for process in self.processes:
            if process:
                process.bury()
        self.connection.close()


class Log(logging.Handler):
    """A log of the last lines; lines that tell of a bug are failures of the world."""

    def __init__(self, world: World):
        super().__init__(logging.INFO)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.last.append(f"    {record.getMessage()}")
        if getattr(record, "event", "") in BROKEN and not self._killed():
            self.world.failures.append(f"no bug is logged: {record.getMessage()}")

    def _killed(self) -> bool:
        return isinstance(sys.exception(), Killed)
