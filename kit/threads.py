"""A few threads that call functions for the event loop, so that it never waits for a disk or a server."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Full, SimpleQueue
from typing import Any

WAITING = 10_000  # calls that may wait for a thread


class Threads:
    """Threads that call functions, in the order in which they are given. `close` ends them."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._calls = SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]()
        # Daemons: a thread that hangs in a read must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, name="reader", daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Call this in a thread; the future gets its result or exception, or queue.Full."""
        future = self._loop.create_future()
        if self._calls.qsize() < WAITING:
            self._calls.put((function, future))
        else:
            future.set_exception(Full("too many requests wait for a thread"))
        return future

    def close(self) -> None:
        """End the threads, but don't wait for one that hangs."""
        for _ in self._threads:
            self._calls.put(None)
        until = time.monotonic() + 0.2
        for thread in self._threads:
            thread.join(max(0, until - time.monotonic()))

    def _work(self) -> None:
        while call := self._calls.get():
            function, future = call
            if future.done():  # its request has gone
                continue
            try:
                result = function()
            except Exception as error:
                result = error
            hand_over(self._loop, [(future, result)])


def hand_over(loop: asyncio.AbstractEventLoop, results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """Give the loop's futures their results, from any thread; exceptions are raised where we await them."""
    with suppress(RuntimeError):  # the loop has ended, and with it all who wait
        loop.call_soon_threadsafe(resolve, results)


def resolve(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """The same in the loop. A future whose client has gone is cancelled already."""
    for future, result in results:
        if future.done():
            pass
        elif isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
