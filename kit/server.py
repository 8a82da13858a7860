"""gunicorn's ASGI worker with a stop that loses no answer, and with as many connections as it may have."""

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

MOST = 20_000  # connections, if the limit of descriptors allows so many
OTHERS = 100  # descriptors that are not clients' connections: the database, the broker, files
LINGER = 0.25  # seconds that a connection is idle before we close it when we stop
ENDING = 2.0  # seconds that answers may take when we stop

ASGIWorker: Any = gasgi.ASGIWorker  # types-gunicorn does not know much of it
gasgi.ASGIProtocol = Connection  # type: ignore[attr-defined]  # the worker has no setting for it


class Worker(ASGIWorker):  # type: ignore[misc]
    """Answers what has come before it stops. `on_stop` is called when it is told to stop."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.idle: dict[Connection, float] = {}  # those without a complete request, oldest first; since when
        self.stopping = False  # from now on each answer says that its connection is closed
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
        """Answer what is being worked on and what is on its way, and close what stays idle for LINGER."""
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
        """Take each connection that waits to be accepted, and let the kernel refuse those that come later.

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
