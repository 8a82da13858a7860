"""gunicorn's ASGI worker with limits for clients that do nothing, and a stop that loses no answer."""

import asyncio
import re
import resource
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from gunicorn.asgi import parser, protocol
from gunicorn.http.errors import ExpectationFailed
from gunicorn.workers import gasgi

from kit.errors import Problem, title
from kit.logs import REQUEST_ID, begin_request

MOST = 20_000  # connections, if the limit of descriptors allows so many
OTHERS = 100  # descriptors that are not clients' connections: the database, the broker, files
LARGEST_HEAD = 16 * 1024  # bytes of a request's line and headers
LARGEST_CHUNKED = 1024 * 1024  # bytes of a chunked request with all its sizes and extensions
TOKEN = rb"[0-9A-Za-z!#$%&'*+.^_`|~-]+"
VALUE = TOKEN + rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[ \t]*%b(?:=(?:%b))?)*\r\n" % (TOKEN, VALUE))  # RFC 9112, 7.1
TRAILERS = re.compile(rb"(?:%b:[\t -~\x80-\xff]*\r\n)*" % TOKEN)
STATUSES = {"LimitRequestLine": 414, "ExpectationFailed": 417, "LimitRequestHeaders": 431}
STATUSES["UnsupportedTransferCoding"] = 501
FIRST_BYTE = b"H"  # of every answer
LOOK = 0.3  # seconds between two looks whether a client that has sent all it wants to send is still there
TCP_CLOSE = 7  # the state of a socket whose peer has reset the connection (linux/tcp_states.h)
STUCK = 10.0  # seconds in which a client must have read something of what we sent
REST = 2.0  # seconds in which a client may send the rest of a request that we refused
LINGER = 0.25  # seconds that a connection is idle before we close it when we stop
ENDING = 2.0  # seconds that answers may take when we stop


Protocol: Any = protocol.ASGIProtocol  # types-gunicorn does not know much of these two
ASGIWorker: Any = gasgi.ASGIWorker


class Connection(Protocol):  # type: ignore[misc]
    """A client's connection. While it has no complete request, another may take its place.

    tests/system/test_gunicorn_worker.py shows for each override what gunicorn does without it.
    """

    _closed: bool
    _callback_parser: Any
    _response_buffer: bytes
    _half_closed = False
    _refused = False  # the rest of a request may still come, and we do not want it
    _sent = 0  # how many bytes of the head of this answer are sent
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._fed = bytearray()  # what the parser has got of a head or of a chunked request
        super().connection_made(transport)
        self._arm_keepalive_timer()  # gunicorn waits for the first request without a limit
        if self.worker.nr_conns > self.worker.worker_connections:
            oldest = next(iter(self.worker.idle))  # the one that has been idle for longest
            del self.worker.idle[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.idle.pop(self, None)
        super().connection_lost(exc)

    def _arm_keepalive_timer(self) -> None:
        if self._half_closed:
            self._keepalive_timeout()
        else:
            self.worker.idle[self] = self.worker.loop.time()
            super()._arm_keepalive_timer()

    # What comes

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Parse it, in pieces, since the parser moves all that follows a chunk. False: we close."""
        try:
            while data and self._callback_parser:
                request = self._current_request
                piece = data[: LARGEST_HEAD if request else LARGEST_HEAD - len(self._fed)]
                if not request or (request.chunked and self._unread):
                    self._fed += piece
                if not piece or len(self._fed) > LARGEST_CHUNKED:
                    raise parser.LimitRequestHeaders(f"its head is longer than {LARGEST_HEAD} bytes")
                self._callback_parser.feed(piece)
                data = data[len(piece) :]
        except Exception as error:  # each parser has its own
            if not self._body_receiver:
                self._send_error_response(STATUSES.get(type(error).__name__, 400), str(error))
                self._close_transport()
                return False
            self._refuse_body()
        if self._unread:
            self.worker.idle.setdefault(self, self.worker.loop.time())
        return True

    def _on_headers_complete(self) -> bool:
        for name, value in self._callback_parser.asgi_headers:
            if name == b"expect" and value.lower() != b"100-continue":
                raise ExpectationFailed(value.decode("latin1"))
        return bool(super()._on_headers_complete())

    def _on_message_complete(self) -> None:
        if self._current_request.chunked and not self._well_formed():
            self._refuse_body()
        else:
            super()._on_message_complete()
        self._fed.clear()
        self.worker.idle.pop(self, None)

    def _well_formed(self) -> bool:
        """gunicorn's parsers skip a chunk's extensions and what follows the last chunk, malformed or not."""
        fed, start = self._fed, self._fed.index(b"\r\n\r\n") + 4
        end = len(fed) - len(self._callback_parser.remaining()) - 2
        while chunk := CHUNK.match(fed, start):
            if (size := int(chunk[1], 16)) == 0:
                return bool(TRAILERS.fullmatch(fed, chunk.end(), end))
            start = chunk.end() + size + 2
        return False

    def _refuse_body(self) -> None:
        """Let the app answer that the body did not come completely. What still comes is thrown away."""
        self._callback_parser = None
        self._body_receiver._body_wait_expired = True
        self._body_receiver._wake_waiter()

    @property
    def _unread(self) -> bool:
        """There is more of a body that is not read."""
        return self._body_receiver is not None and not self._body_receiver._complete

    def eof_received(self) -> bool:
        """The client sends nothing more. It still gets its answer; a stream ends. (gunicorn drops both.)"""
        if self._closed or not self._body_receiver:
            return False
        self._half_closed = True
        if self._unread:
            self._refuse_body()
        if self._sent > 1:
            self._task.cancel()
        self.worker.loop.call_later(LOOK, self._look)
        return True

    def _look(self) -> None:
        """Break off if the client has gone. We only learn that if we send something, so begin the answer."""
        if self.transport.is_closing():
            return
        connection = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            self.transport.abort()
            return
        if not self._sent:
            self._safe_write(FIRST_BYTE)
            self._sent = 1
        self.worker.loop.call_later(LOOK, self._look)

    # What we send

    def _send_response_start(self, *given: Any, **named: Any) -> None:
        super()._send_response_start(*given, **named)
        self._response_buffer = self._response_buffer[self._sent :]
        self._sent += len(self._response_buffer)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._break_off_if_stuck()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()

    def _break_off_if_stuck(self, before: int = 0) -> None:
        """See to it that a client that reads nothing for STUCK is cut off."""
        left = self.transport.get_write_buffer_size()
        if left and left == before:
            self.transport.abort()
        elif left:
            self._stuck = self.worker.loop.call_later(STUCK, self._break_off_if_stuck, left)

    def _close_transport(self) -> None:
        """Close, but first read the rest of a request that we refused: otherwise our answer may get lost.

        The client's kernel drops what it has not read if we close before it has sent all (RFC 9112, 9.6).
        """
        if self._closed:
            return
        self.worker.idle[self] = self.worker.loop.time()
        if (self._unread or self._refused) and not self._half_closed:
            self._closed, self._callback_parser = True, None
            self._resume_reading()
            self.transport.write_eof()
            self.worker.loop.call_later(REST, self.transport.close)
        else:
            super()._close_transport()
            self._break_off_if_stuck()  # closing sends the rest first, without a limit

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """gunicorn does not say beforehand that it closes if the body was not read."""
        ending = self._unread or (self.worker.stopping and not self._callback_parser.remaining())
        return ending or bool(super()._will_close(request, response_requires_close))

    def _is_websocket_upgrade(self, request: Any) -> bool:
        return False  # a server may ignore Upgrade (RFC 9110, section 7.8)

    async def _serve_http_request(self, request: Any, sockname: Any, peername: Any) -> bool:
        # gunicorn makes a task for each request, for apps that go on working after their answer.
        self._sent = 0
        return bool(await self._handle_http_request(request, sockname, peername))

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """Answer what is not HTTP with a problem, as we answer everything else."""
        if self._closed:  # gunicorn calls this, too, if the client of a request has gone
            return
        request_id, about = begin_request(), {"event": "request_invalid"}
        self._refused = True
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
        for connection, since in list(self.idle.items()):
            poll = select.poll()
            with suppress(ValueError):  # it is closed already
                poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
                if since < self.loop.time() - LINGER and not poll.poll(0):
                    connection.transport.close()


def connections() -> int:
    """How many connections this process may have, after raising its limit of descriptors to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MOST if hard == resource.RLIM_INFINITY else max(1, min(MOST, hard - OTHERS))
