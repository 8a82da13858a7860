"""gunicorn's threaded worker with room for many idle clients, and what the machine's limits leave for it.

gunicorn's own worker waits up to five seconds in a thread for the first byte of a connection, and up to two
in its main thread for a client to close. So a few hundred clients that do nothing would stop all others.
"""

import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ
from typing import Any, NamedTuple

import msgspec
from gunicorn.http import errors as refusals
from gunicorn.util import write
from gunicorn.workers.gthread import TConn, ThreadWorker

from kit import trace
from kit.errors import Problem, title

ENOUGH = 65_536  # of anything that has no limit
LINGER = 2.0  # seconds in which a client may still send what is no longer read
PAUSE = 0.2  # seconds without a byte of it
STATUSES: dict[type, int] = {
    refusals.LimitRequestLine: 414,
    refusals.ExpectationFailed: 417,
    refusals.LimitRequestHeaders: 431,
    refusals.UnsupportedTransferCoding: 501,
}


class Worker(ThreadWorker):
    """A connection without a request costs one descriptor and no thread. The oldest of these makes room."""

    def enqueue_req(self, conn: TConn) -> None:
        """Wait for the first byte of a new connection without a thread."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + self.cfg.keepalive
        self.pending_conns.append(conn)
        self.poller.register(
            conn.sock, EVENT_READ, lambda client: self.on_pending_socket_readable(conn, client)
        )

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """Before refusing connections, close the one that has been idle for longest."""
        idle = [conns[0] for conns in (self.pending_conns, self.keepalived_conns) if conns]
        if not enabled and self.alive and idle:
            min(idle, key=lambda conn: conn.timeout or 0).timeout = 0
            self.murder_pending()
            self.murder_keepalived()
            enabled = True
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            self.accept_the_last()

    def accept_the_last(self) -> None:
        """Before it stops, take each connection that waits to be accepted. From then on, refuse new ones.

        Otherwise the kernel would go on taking connections, and reset them when the process ends.
        """
        for listener in self.sockets:
            listener.setblocking(False)
            known = -1
            while known < self.nr_conns < self.worker_connections:
                known = self.nr_conns
                self.accept(listener)
            listener.close()

    def handle(self, conn: TConn) -> Any:
        """Close a connection in this thread as far as one may have to wait for the client."""
        trace.REQUEST.set("")  # that of an earlier request in this thread
        kept = super().handle(conn)
        if not kept:
            linger(conn.sock)
        return kept

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what is not HTTP with a problem, as we answer everything else."""
        if not isinstance(exc, refusals.ParseException):
            super().handle_error(req, client, addr, exc)
            return
        if req:
            return  # it was answered; only the rest of its body is malformed
        request_id, about = trace.begin(), {"event": "request_invalid"}
        self.log.warning(f"Invalid request from ip={addr[0] if addr else ''}: {exc}", extra=about)
        status = STATUSES.get(type(exc), 400)
        body = msgspec.json.encode(Problem(title(status), status, f"This is not HTTP as we take it: {exc}"))
        lines = f"HTTP/1.1 {status} {title(status)}", "Connection: close", f"Content-Length: {len(body)}"
        named = f"{trace.HEADER}: {request_id}", "Content-Type: application/problem+json"
        head = "\r\n".join([*lines, *named, "", ""])
        with suppress(OSError):
            write(client, head.encode() + body)


def linger(connection: socket.socket) -> None:
    """Read what the client still sends: its kernel may drop our answer if we close first (RFC 9112, 9.6)."""
    until = time.monotonic() + LINGER
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(PAUSE)
        with suppress(TimeoutError):
            while connection.recv(65_536) and time.monotonic() < until:
                pass
        connection.shutdown(socket.SHUT_RDWR)  # so gunicorn's main thread does not wait


class Room(NamedTuple):
    """How many connections, threads and waiting requests the limits of the machine allow."""

    connections: int
    threads: int
    waits: int


def room(threads: int, waits: int, files: int, processes: int) -> Room:
    """The room for so many requests that are worked on and that wait, within these limits.

    Descriptors: one for each connection, one for each thread that sends a file, three for each connection
    to the database, and some more. Beyond the limits the worker would die, because gunicorn catches neither
    EMFILE nor a thread that cannot start.
    """
    wanted = threads + waits + 64
    spare = files - 3 * (threads + 4) - 64
    possible = max(threads, min(wanted, spare // 3, processes - 64))
    return Room(max(possible + 1, spare - possible), possible, max(0, waits - (wanted - possible)))


def files() -> int:
    """How many descriptors this process may have, after raising its soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = ENOUGH
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def processes(groups: str = "/proc/self/cgroup", mounted: str = "/sys/fs/cgroup") -> int:
    """How many threads the control groups of this process allow, this one and those around it."""
    limits = [ENOUGH]
    with suppress(OSError):
        for line in Path(groups).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "pids"):  # version 2, version 1
                top = Path(mounted, controllers)
                inner = Path(path).relative_to("/")
                for folder in (inner, *inner.parents):
                    with suppress(OSError, ValueError):  # "max" is no limit
                        limits.append(int((top / folder / "pids.max").read_text()))
    return min(limits)
