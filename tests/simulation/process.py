"""A process of the world: the real ledger, listener, store and events, with their own clock and loop."""

import asyncio
import selectors
from collections import Counter
from zlib import crc32

from broker import Client
from database import connect
from events import Changes
from kit import storage
from kit.clock import SECOND
from kit.errors import NotRead, Refusal
from kit.storage import Store, Unreadable
from kit.threads import hand_over
from ledger import JobQueue, Ledger
from mqtt_listener import Listener
from programs import MIGRATIONS


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
        self.fuse, self.dead = 0, False
        self.subscribed_at = self.awake_since = self.writable_since = self.stepped = world.now
        self.armed = Counter[str]()
        self.tasks: dict[asyncio.Task, int | None] = {}  # requests, and when each must have been answered
        storage.connect, settings = connect(self), world.settings
        self.store = Store(settings.database_url, 6, MIGRATIONS, self.clock)
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
        storage.connect, now = connect(self), self.world.now
        self.awake_since = self.awake_since if now - self.stepped < 4 * SECOND else now
        self.stepped = now
        session = self.listener.session
        try:
            self.listener._client.poll()
            for turn in (lambda: self.ledger.step(0), self.loop.turn)[:: 1 - self.world.steps % 2 * 2]:
                turn()
        except Killed:
            self.bury()
        if self.store.problem:
            self.writable_since = self.world.now
        self.world.rules.in_time(self, self.listener._client.link)
        if self.listener.session > session or not self.listener.subscribed:
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
        self.loop.close()
        self.world.processes[self.number] = None
