"""gunicorn's ASGI worker with limits for clients that do nothing, and a stop that loses no answer."""

import asyncio
import resource
import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from gunicorn.asgi import protocol
from gunicorn.workers import gasgi

from kit.errors import Problem, title
from kit.logs import REQUEST_ID, begin_request

MOST = 20_000  # connections, if the limit of descriptors allows so many
OTHERS = 100  # descriptors that are not clients' connections: the database, the broker, files
LAST_CHUNK = b"\n0\r\n\r\n"  # with no trailer after it (RFC 9112, section 7.1)
HALF_CLOSED = 1.0  # seconds in which a client that sends nothing more still gets its answer
STUCK = 10.0  # seconds in which a client must have read something of what we sent
REST = 2.0  # seconds in which a client may send the rest of a body that we refused
LINGER = 0.25  # seconds that a connection is idle before we close it when we stop
ENDING = 2.0  # seconds that answers may take when we stop


Protocol: Any = protocol.ASGIProtocol  # types-gunicorn does not know much of these two
ASGIWorker: Any = gasgi.ASGIWorker


class Connection(Protocol):  # type: ignore[misc]
    """A client's connection. While it has no request, another that needs its place may close it."""

    _closed: bool
    _tail = b""  # the last bytes that came
    _half_closed = False
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm_keepalive_timer()  # gunicorn waits for the first request without a limit
        if self.worker.nr_conns > self.worker.worker_connections:
            oldest = next(iter(self.worker.idle))  # the one that has been idle for longest
            del self.worker.idle[oldest]
            oldest._close_transport()

    def _arm_keepalive_timer(self) -> None:
        self.worker.idle[self] = self.worker.loop.time()
        super()._arm_keepalive_timer()

    def _on_headers_complete(self) -> bool:
        self.worker.idle.pop(self, None)
        return bool(super()._on_headers_complete())

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        super().data_received(data)

    def _on_message_complete(self) -> None:
        """gunicorn's parsers skip what is after the last chunk, malformed or not. We refuse it."""
        if self._current_request.chunked and self._tail != LAST_CHUNK:
            self._body_receiver._body_wait_expired = True
            self._body_receiver._wake_waiter()
        else:
            super()._on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.idle.pop(self, None)
        self.resume_writing()
        super().connection_lost(exc)

    @property
    def _unread(self) -> bool:
        """There is more of a body that is not read."""
        return self._body_receiver is not None and not self._body_receiver._complete

    def eof_received(self) -> bool:
        """The client sends nothing more. It may still read its answer, so keep our half open.

        One that has gone looks the same, so it has a moment only. (gunicorn would drop the answer.)
        """
        self._half_closed = self._body_receiver is not None and not self._closed
        if self._half_closed and self._unread:
            self._body_receiver._body_wait_expired = True
            self._body_receiver._wake_waiter()
        if self._half_closed:
            self.worker.loop.call_later(HALF_CLOSED, self._cancel_task_if_pending)
        return self._half_closed

    def pause_writing(self) -> None:
        """The client does not read. Break off if it goes on like this."""
        super().pause_writing()
        self._stuck = self.worker.loop.call_later(STUCK, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()

    def _close_transport(self) -> None:
        """Close, but first read the rest of a body that was refused: otherwise our answer may get lost.

        The client's kernel drops what it has not read if we close before it has sent all (RFC 9112, 9.6).
        """
        if self._unread and not self._closed and not self._half_closed:
            self._closed, self._callback_parser = True, None  # what comes is thrown away
            self._resume_reading()
            self.transport.write_eof()
            self.worker.loop.call_later(REST, self.transport.close)
            return
        super()._close_transport()
        if self.transport.get_write_buffer_size():  # closing sends the rest first, without a limit
            self.worker.loop.call_later(STUCK, self.transport.abort)

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """gunicorn does not say beforehand that it closes if the body was not read."""
        ending = self._unread or self._half_closed or self.worker.stopping
        return ending or bool(super()._will_close(request, response_requires_close))

    def _is_websocket_upgrade(self, request: Any) -> bool:
        return False  # a server may ignore Upgrade (RFC 9110, section 7.8)

    async def _serve_http_request(self, request: Any, sockname: Any, peername: Any) -> bool:
        # gunicorn makes a task for each request, for apps that go on working after their answer.
        return bool(await self._handle_http_request(request, sockname, peername))

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """Answer what is not HTTP with a problem, as we answer everything else."""
        if self._closed:  # gunicorn calls this, too, if the client of a request has gone
            return
        request_id, about = begin_request(), {"event": "request_invalid"}
        client = (self.transport.get_extra_info("peername") or [""])[0]
        # After a colon, gunicorn quotes what it cannot read, which may be a mistyped header with a token.
        self.log.warning("Invalid request from ip=%s: %s", client, message.split(": ")[0], extra=about)
        body = msgspec.json.encode(
            Problem(title(status), status, f"This is not HTTP as we take it: {message}")
        )
        lines = [f"HTTP/1.1 {status} {title(status)}", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"{REQUEST_ID}: {request_id}", "Content-Type: application/problem+json", "", ""]
        self._safe_write("\r\n".join(lines).encode() + body)


Protocol._check_h1c_protocol_available()  # called for a subclass first, gunicorn never uses its C parser
gasgi.ASGIProtocol = Connection  # type: ignore[attr-defined]  # the worker has no setting for it


class Worker(ASGIWorker):  # type: ignore[misc]
    """Answers what has come before it stops. `on_stop` is called when it is told to stop."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.idle: dict[
            Connection, float
        ] = {}  # connections without a request, and since when; oldest first
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
        """Answer what is being worked on and what is on its way, and close what stays idle."""
        self.stopping = True
        self.on_stop()
        until = self.loop.time() + ENDING
        await asyncio.sleep(LINGER)
        await self._stop_listening()
        while self.nr_conns and self.loop.time() < until:
            self._close_idle()
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

    def _close_idle(self) -> None:
        """Close those that have been idle for LINGER, unless there is something to read."""
        poll, latest = select.poll(), self.loop.time() - LINGER
        idle = {}
        for connection, since in self.idle.items():
            number = connection.transport.get_extra_info("socket").fileno()
            if since < latest and number >= 0:
                poll.register(number, select.POLLIN)
                idle[number] = connection
        for number, _ in poll.poll(0):
            del idle[number]
        for connection in idle.values():
            connection._close_transport()


def connections() -> int:
    """How many connections this process may have, after raising its limit of descriptors to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MOST if hard == resource.RLIM_INFINITY else max(1, min(MOST, hard - OTHERS))
