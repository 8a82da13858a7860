"""A process of the world: the real ledger, listener, store and events, with their own clock and loop."""

import asyncio
from collections import Counter
from zlib import crc32

from broker import Client
from database import Database
from events import Changes
from kit import sql, storage
from kit.clock import SECOND
from kit.errors import NotRead
from kit.storage import Store, Unreadable
from ledger import JobQueue, Ledger
from mqtt_listener import Listener
from programs import MIGRATIONS


class Killed(KeyboardInterrupt):
    """The process ends here: no line of its code has an effect after this."""


class Loop(asyncio.BaseEventLoop):
    """A loop whose time is the world's, and that never waits."""

    def __init__(self, world):
        super().__init__()
        self._world, self._selector = world, self
        self.set_exception_handler(self._raised)

    def time(self) -> float:
        return self._world.now / SECOND

    def turn(self) -> None:
        if self._ready or (self._scheduled and self._scheduled[0]._when <= self.time()):
            asyncio._set_running_loop(self)
            try:
                self._run_once()
            finally:
                asyncio._set_running_loop(None)

    def _raised(self, _, context) -> None:
        if context["message"].startswith("Exception in callback"):
            self._world.failures.append(f"no callback raises: {context['exception']!r}")

    def _nothing(self, *_) -> tuple:
        return ()

    select = _process_events = _write_to_self = _nothing


class Process:
    """A process, from its start until it is killed. It is its own clock: only the wall clock jumps."""

    def __init__(self, world, number: int, offset: int):
        self.world, self.number, self.offset, self.loop = world, number, offset, Loop(world)
        self.steady = lambda: world.now + offset
        self.fuse, self.dead = 0, False
        self.subscribed_at = self.awake_since = self.writable_since = self.stepped = world.now
        self.committed_at = 0
        self.armed = Counter[str]()
        self.tasks: dict[asyncio.Task, tuple[int, int | None]] = {}  # when each began, and its limit
        storage.connect, settings, queue = self._connect, world.settings, JobQueue()
        self.store = Store(settings.database_url, 6, MIGRATIONS, self)
        self.store._tried.set()  # else a read would wait for a thread
        self.listener = Listener(settings, queue.put, self, lambda *_, **__: Client(self))
        self.client = self.listener._client
        self.changes = Changes(self.read, lambda: b"{}", 50, self.loop)
        self.ledger = Ledger(settings, self.store, queue, self.listener, self.loop, self.changes.wake)

    def wall(self) -> int:
        return self.world.now + self.offset

    def _connect(self, url: str, pool: int) -> Database:
        """Stands for `kit.sql.connect`."""
        database = sql.connect(url, pool)
        database.__class__, database.process = Database, self
        return database

    def queues(self, key: str) -> bool:
        """True if this question waits for one of the broker's slots."""
        waiting = self.listener._connection.waiting
        return any(question.transaction_id.hex == key for _, (question, _) in waiting)

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

    async def read(self, function, *values):
        """What `Service.read` does with a thread: the loop turns before it and after it."""
        await asyncio.sleep(0)
        self.call("read")
        try:
            result = self.store.read(function, *values)
        except Unreadable as error:
            raise NotRead(str(error)) from error
        await asyncio.sleep(0)
        return result

    def start(self, coroutine, seconds: int | None = None) -> asyncio.Task:
        """Let a client do something, which must end within this time if it is given."""
        task = self.loop.create_task(coroutine)
        self.tasks[task] = self.world.now, seconds
        return task

    def step(self, turns: int) -> None:
        """What the threads of a process do in a moment."""
        storage.connect, now = self._connect, self.world.now
        self.awake_since = self.awake_since if now - self.stepped < 4 * SECOND else now
        self.stepped, session = now, self.listener.session
        try:
            self.client.poll()
            if self.world.steps % 2:
                self.ledger.step(0)
            for _ in range(turns):
                self.loop.turn()
            if not self.world.steps % 2:
                self.ledger.step(0)
        except Killed:
            self.bury()
            return
        if self.store.problem:
            self.writable_since = self.world.now
        self.world.rules.in_time(self)
        if self.listener.session > session or not self.listener.subscribed:
            self.subscribed_at = self.world.now
        for task, (began, seconds) in [*self.tasks.items()]:
            in_time = not seconds or self.world.now - max(began, self.awake_since) < seconds * SECOND
            self.world.rules.require(in_time or task.done(), "a request is answered in time", seconds)
            if task.done():
                del self.tasks[task]
                if not task.cancelled():
                    task.result()

    def bury(self) -> None:
        """Forget all that was in the memory of a process that was killed."""
        self.dead = True
        self.world.note(self, "is dead")
        self.store.database.abandon()
        self.client.hang_up()
        for task in [*self.tasks, self.changes._reader]:
            if task and not task.done():
                task._log_destroy_pending = False
                task.get_coro().close()
        self.loop.close()
        self.world.processes[self.number] = None
