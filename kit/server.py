"""gunicorn's ASGI worker, stopping without a lost answer, and using all the connections it may have."""

import asyncio
import resource
import select
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers import gasgi

from kit.connection import Connection

MOST = 20_000  # connections, if the descriptor limit allows it
OTHERS = 100  # descriptors for the database, the broker and files
LINGER = 0.25  # seconds that a connection is idle before we close it when we stop
ENDING = 2.0  # seconds that answers may take when we stop

ASGIWorker: Any = gasgi.ASGIWorker  # types-gunicorn knows little about it
gasgi.ASGIProtocol = Connection  # type: ignore[attr-defined]  # the worker has no setting for it


class Worker(ASGIWorker):  # type: ignore[misc]
    """Answers all requests that have arrived before it stops. Calls `on_stop` when a signal stops it."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.idle: dict[Connection, float] = {}  # those without a complete request, oldest first; since when
        self.stopping = False  # from now on each answer has `Connection: close`
        self.on_stop: Callable[[], None] = lambda: None
        self._main: asyncio.Task[None] | None = None

    def init_process(self) -> None:
        """Boot and answer. If that fails, gunicorn would end for good, though it may work a second later.

        If the first worker fails, gunicorn does end: then something is wrong in itself.
        """
        try:
            super().init_process()
        except Exception:
            if self.booted or self.age == 1:
                raise
            self.log.exception("a worker cannot start; gunicorn tries again", extra={"event": "no_start"})
            time.sleep(1)
            raise SystemExit(1) from None

    async def _serve(self) -> None:
        self._main = asyncio.current_task()
        # gunicorn leaves it to asyncio how many connections may wait to be accepted: 100. Past these, a
        # client waits for a second or more until the kernel sends its SYN again.
        self.loop.create_server = partial(self.loop.create_server, backlog=self.cfg.backlog)
        with suppress(asyncio.CancelledError):
            await super()._serve()

    def handle_exit_signal(self) -> None:
        """Stop. gunicorn's own looks at `alive` once a second, and closes connections when it is False."""
        if self._main and not self.stopping:
            self._main.cancel()
        else:
            self.alive = False

    handle_quit_signal = handle_exit_signal  # SIGINT and SIGQUIT: as fast, and loses no answer either

    async def _shutdown(self) -> None:
        """Answer requests that are running or on their way, and close connections idle for LINGER."""
        self.stopping = True
        self.on_stop()
        until = self.loop.time() + ENDING
        await self._stop_listening()
        while self.nr_conns and self.loop.time() < until:
            for connection, since in list(self.idle.items()):
                if since < self.loop.time() - LINGER and not connection.has(select.POLLIN):
                    connection.transport.close()
            await asyncio.sleep(0.02)
        self.alive = False

    async def _stop_listening(self) -> None:
        """Accept each connection that waits, and let the kernel refuse later ones.

        Otherwise it would go on taking connections, and reset them when the process ends.
        """
        listeners = [listener.sock.dup() for listener in self.sockets]
        for server in (*self.servers, *self.sockets):
            server.close()
        for listener in listeners:
            listener.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    client, _ = listener.accept()
                    client.setblocking(False)
                    await self.loop.connect_accepted_socket(lambda: Connection(self), client)
            listener.close()


def connections() -> int:
    """How many connections this process may have, after raising its limit of descriptors to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MOST if hard == resource.RLIM_INFINITY else max(1, min(MOST, hard - OTHERS))
