"""A world in one thread: processes with the real ledger, listener, store and events, and their surroundings.

Time is the world's. An event is data; `apply` does it, and one process takes a step. The same list of events
always gives the same run.
"""

import asyncio
import logging
import selectors
import sys
from collections import Counter, deque
from random import Random
from zlib import crc32

import models
from broker import BEHAVIOUR, GARBAGE, Broker, Client, Equipment
from database import connect, copy
from events import Changes
from kit import clock, storage
from kit.clock import SECOND
from kit.errors import NotRead, NotStored, OutcomeUnknown, Refusal
from kit.settings import Settings
from kit.storage import Store, Unreadable
from kit.threads import hand_over
from ledger import JobQueue, Ledger
from models import Draft
from mqtt_listener import Listener
from programs import MIGRATIONS
from rules import DAY, Rules, Story, Violation
from schemas import Status, Transaction

BEGINNING = 1_800_000_000 * SECOND
BROKEN = {"job_failed", "callback_failed", "changes_failed"}  # lines of the log that tell of a bug
CALM = SECOND // 8  # between two steps of a world that behaves


class Killed(KeyboardInterrupt):
    """The process ends here: no line of its code has an effect after this."""


class Selector(selectors.SelectSelector):
    def select(self, timeout=None) -> list:
        return []


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time is the world's, and that never waits."""

    def __init__(self, world):
        self._world, self._number = world, 0
        super().__init__(Selector())
        self.set_exception_handler(self._raised)

    def time(self) -> float:
        return self._world.now / SECOND

    def turn(self) -> None:
        asyncio._set_running_loop(self)
        try:
            self._run_once()
        finally:
            asyncio._set_running_loop(None)

    def create_future(self) -> "Future":
        self._number += 1
        return Future(self)

    def _raised(self, _, context) -> None:
        if context["message"].startswith("Exception in callback"):
            self._world.failures.append(f"no callback raises: {context['exception']!r}")

    def _make_self_pipe(self) -> None:
        pass

    _close_self_pipe = _write_to_self = _make_self_pipe


class Future(asyncio.Future):
    """Sets of futures keep their order in every run: the hash is a number and no address."""

    def __init__(self, loop: Loop):
        super().__init__(loop=loop)
        self._hash = loop._number

    def __hash__(self) -> int:
        return self._hash


class Clock:
    """One process's clocks: the wall clock jumps; the other one goes on from where that was at the start."""

    def __init__(self, world, offset: int):
        self.world, self.offset, self.begin = world, offset, offset

    def wall(self) -> int:
        return self.world.now + self.offset

    def steady(self) -> int:
        return self.world.now + self.begin


class Process:
    """A process, from its start until it is killed."""

    def __init__(self, world, number: int, offset: int):
        self.world, self.number = world, number
        self.clock, self.loop = Clock(world, offset), Loop(world)
        self.fuse, self.dead, self.subscribed_at = 0, False, world.now
        self.armed = Counter[str]()
        self.tasks: dict[asyncio.Task, int | None] = {}  # requests, and when each must have been answered
        storage.connect, settings = connect(self), world.settings
        self.store = Store(settings.database_url, 6, MIGRATIONS, models.TABLES, self.clock)
        queue = JobQueue()
        self.listener = Listener(settings, queue.put, self.clock, lambda *_, **__: Client(self))
        self.changes = Changes(self.read, lambda: b"{}", 50, self.loop)
        self.ledger = Ledger(settings, self.store, queue, self.listener, self.loop, self.changes.wake)
        self.listener.__enter__()

    def call(self, name: str) -> None:
        """A call into the world, which may be the last one."""
        if self.dead:
            raise Killed
        self.world.trace = crc32(name.encode(), self.world.trace)
        if self.fuse:
            self.fuse -= 1
            self.dead = not self.fuse
            if self.dead:
                raise Killed(name)

    async def read(self, function, *values, **named):
        """What `Service.read` does with a thread."""
        future = self.loop.create_future()
        self.loop.call_soon(self._read, future, function, values, named)
        return await future

    def _read(self, future, function, values, named) -> None:
        self.call("read")
        try:
            result = self.store.read(function, *values, **named)
        except Unreadable as error:
            result = NotRead(str(error))
        except Refusal as error:
            result = error
        hand_over(self.loop, [(future, result)])

    def start(self, coroutine, seconds: int | None = None) -> asyncio.Task:
        """Let a client do something, which must end within this time if it is given."""
        task = self.loop.create_task(coroutine)
        self.tasks[task] = seconds and self.world.now + seconds * SECOND
        return task

    def step(self) -> None:
        """What the threads of a process do in a moment."""
        storage.connect = connect(self)
        session = self.listener.session
        try:
            self.listener._client.poll()
            for turn in (lambda: self.ledger.step(0), self.loop.turn)[:: 1 - self.world.steps % 2 * 2]:
                turn()
        except Killed:
            self.bury()
        if self.listener.session > session:
            self.subscribed_at = self.world.now
        for task in [task for task in self.tasks if task.done()]:
            del self.tasks[task]
            if not task.cancelled():
                task.result()

    def bury(self) -> None:
        """Forget all that was in the memory of a process that was killed."""
        self.dead = True
        self.world.note(self, "is dead")
        self.store.database.abandon()
        if (link := self.listener._client.link) in self.world.broker.links:
            self.world.broker.forget(link)
        for task in [*self.tasks, self.changes._reader]:
            if task and not task.done():
                task._log_destroy_pending = False
                task.get_coro().close()
        self.world.processes[self.number] = None


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

    async def _create(self, process: Process, draft: Draft) -> None:
        try:
            transaction = await process.ledger.create(draft)
        except NotStored:
            if draft.created:
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
        setattr(self.broker.limits, name, value)

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
        self.machine.mode = self.calm_equipment if self.calm_equipment in ("honest", "slow") else "silent"
        for number, process in enumerate(self.processes):
            self.clock(number, 0)
            if process:
                process.fuse = 0
                process.armed.clear()
            self.start(number)
        pending = sum(len(process.tasks) for process in self.processes)
        pending += sum(row.status == "PENDING" for row in self.rules.rows.values())
        if pending > 3 * self.window:  # it would take hours of the world until all have expired
            self.machine.mode = "honest"
        until = self.now + self.timeout * -(-pending // self.window) + 60 * SECOND
        while (problem := self.unsettled()) and self.now < until:
            for follower in self.followers:
                follower.come(self.processes[0])
            for number in [*range(len(self.processes))] * 5:
                self.now += CALM
                if self.calm_equipment == "flapping" and self.steps % 3 == 0:
                    self.broker.status("flapping", "online")
                self.step(number)
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
        if self.retention and any(row.updated < before for row in rows):
            return "retention has work"
        return ""

    def close(self) -> None:
        for process in self.processes:
            if process:
                process.bury()
        self.connection.close()


class Follower:
    """A client that follows events, and comes back with its last id."""

    def __init__(self, world: World, station: int | None):
        self.world, self.station, self.story = world, station, Story(world.rules)
        self._task: asyncio.Task | None = None
        self._process: Process | None = None

    def come(self, process: Process) -> None:
        if self._task and not self._task.done() and not self._process.dead:
            return
        self._process, self._task = process, process.start(self._follow(process))

    def leave(self) -> None:
        if self._task:
            self._task.cancel()

    async def _follow(self, process: Process) -> None:
        cursor = self.story.cursor
        try:
            stream = process.changes.follow(cursor and (cursor[0], clock.UUID(cursor[1])), self.station)
            async for chunk in stream:
                self._take(process, chunk)
        except (Refusal, asyncio.CancelledError) as error:
            self.world.note(process, "ends", repr(error))

    def _take(self, process: Process, chunk: bytes) -> None:
        for block in chunk.decode().strip().split("\n\n"):
            event = dict(line.split(": ", 1) for line in block.split("\n"))
            if "id" not in event:
                continue
            updated, key = event["id"].split("-")
            cursor = int(updated), key
            self.world.note(process, "event", event["event"], cursor)
            if event["event"] in ("begin", "reset"):
                self.story.begins(event["event"], cursor)
            else:
                status = event["data"].partition('"status":"')[2].partition('"')[0]
                self.story.told(cursor, status, self.station)


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
