"""A client's connection: gunicorn's ASGI protocol, plus limits, and without lost answers.

test_not_a_request.py, test_limits.py and test_stop.py in tests/system need these additions.
"""

import re
import select
import socket
from contextlib import suppress
from typing import Any

import msgspec
from gunicorn.asgi import parser, protocol

from kit.errors import Problem, title
from kit.logs import REQUEST_ID, begin_request

LARGEST_HEAD = 16 * 1024  # bytes in a request's line and headers
LARGEST_CHUNKED = 1024 * 1024  # bytes in a chunked request, with all sizes and extensions
TOKEN = rb"[0-9A-Za-z!#$%&'*+.^_`|~-]+"
VALUE = TOKEN + rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
EXTENSION = rb"[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b))?" % (TOKEN, VALUE)  # RFC 9112, section 7.1.1
CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:%b)*\r\n" % EXTENSION)
TRAILERS = re.compile(rb"(?:%b:[\t -~\x80-\xff]*\r\n)*" % TOKEN)
STATUSES = {"LimitRequestLine": 414, "LimitRequestHeaders": 431, "UnsupportedTransferCoding": 501}
CONTINUE = b"100-continue"
HANGUP_INTERVAL = 0.2  # seconds between two checks on a client that has closed its side
STUCK = 10_000  # milliseconds until a client must have read some bytes
REST = 2.0  # seconds for the rest of a refused request to come

Protocol: Any = protocol.ASGIProtocol  # types-gunicorn knows little about it
Protocol._check_h1c_protocol_available()  # called for a subclass first, gunicorn never uses its C parser


class Connection(Protocol):  # type: ignore[misc]
    """A client's connection. While it has no complete request, another may take its place."""

    _closed: bool
    _callback_parser: Any
    _body_receiver: Any
    _response_buffer: bytes
    _half_closed = False
    _sent = 0  # bytes sent so far of this answer's head
    _streams = False  # its body has no length

    def connection_made(self, transport: Any) -> None:
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._fed = bytearray()  # the bytes parsed so far, for a head or a chunked request
        super().connection_made(transport)
        with suppress(OSError):  # a Unix socket has no timeout for a peer that doesn't read
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK)
        self._arm_keepalive_timer()  # gunicorn waits for the first request without a limit
        if self.worker.nr_conns > self.worker.worker_connections:
            oldest = next(iter(self.worker.idle))  # idle for longest
            del self.worker.idle[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.idle.pop(self, None)
        super().connection_lost(exc)
        self._callback_parser = self._body_receiver = None  # otherwise only the collector frees them and us

    def _arm_keepalive_timer(self) -> None:
        if self._half_closed:
            self._keepalive_timeout()
        else:
            self.worker.idle[self] = self.worker.loop.time()
            super()._arm_keepalive_timer()

    # Incoming

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Parse it, in pieces, since the parser moves all that follows a chunk. False: we close."""
        if not self._current_request and not self._fed:
            data = data.lstrip(b"\r\n")  # empty lines before a request (RFC 9112, section 2.2)
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

    def _on_message_complete(self) -> None:
        if self._current_request.chunked and not self._well_formed():
            self._refuse_body()
        else:
            super()._on_message_complete()
        self._fed.clear()
        self.worker.idle.pop(self, None)

    def _well_formed(self) -> bool:
        """gunicorn's parsers skip a chunk's extensions and the trailers, malformed or not."""
        fed, start = self._fed, self._fed.index(b"\r\n\r\n") + 4
        end = len(fed) - len(self._callback_parser.remaining()) - 2
        while chunk := CHUNK.match(fed, start):
            if (size := int(chunk[1], 16)) == 0:
                return bool(TRAILERS.fullmatch(fed, chunk.end(), end))
            start = chunk.end() + size + 2
        return False

    def _refuse_body(self) -> None:
        """Let the app answer that the body is incomplete. The rest is thrown away if it still comes."""
        self._callback_parser = None
        self._body_receiver._body_wait_expired = True
        self._body_receiver._wake_waiter()

    @property
    def _unread(self) -> bool:
        """Part of the body has not been read."""
        return self._body_receiver is not None and not self._body_receiver._complete

    def eof_received(self) -> bool:
        """The client has closed its side. It still gets its answer; a stream ends. (gunicorn drops both.)"""
        if self._closed or not self._body_receiver:
            return False
        self._half_closed = True
        if self._unread:
            self._refuse_body()
        self.worker.loop.call_later(0 if self._streams else HANGUP_INTERVAL, self._look)
        return True

    def _look(self) -> None:
        """Break off if the client has gone. We only learn that if we send something, so begin the answer."""
        if self.transport.is_closing():
            return
        if self._streams:
            self._task.cancel()
        elif self.has(select.POLLHUP):
            self.transport.abort()
        elif not self._sent:
            self.transport.write(b"H")  # as every answer begins
            self._sent = 1
        self.worker.loop.call_later(HANGUP_INTERVAL, self._look)

    def has(self, event: int) -> bool:
        """Whether the socket has this event of poll(2), or has ended."""
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(0))

    # Outgoing

    def _send_response_start(self, *given: Any, **named: Any) -> None:
        super()._send_response_start(*given, **named)
        self._streams = b"Content-Length: " not in self._response_buffer
        self._response_buffer = self._response_buffer[self._sent :]
        self._sent += len(self._response_buffer)

    def _close_transport(self) -> None:
        """Close, but first read the rest of a refused request: otherwise our answer may get lost.

        If we close while the client still sends, its kernel drops bytes it hasn't read (RFC 9112, 9.6).
        """
        if self._closed:
            return
        self.worker.idle[self] = self.worker.loop.time()
        if (self._unread or not self._callback_parser) and not self._half_closed:
            self._closed, self._callback_parser = True, None
            self.transport.resume_reading()
            self.transport.write_eof()
            self.worker.loop.call_later(REST, self.transport.close)
        else:
            super()._close_transport()

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """gunicorn closes after an unread body without announcing it."""
        if self._unread or not self._callback_parser:
            return True
        ending = self.worker.stopping and not self._callback_parser.remaining()
        return ending or bool(super()._will_close(request, response_requires_close))

    def _is_websocket_upgrade(self, request: Any) -> bool:
        return False  # a server may ignore Upgrade (RFC 9110, section 7.8)

    async def _serve_http_request(self, request: Any, sockname: Any, peername: Any) -> bool:
        # gunicorn makes a task for each request, for apps that go on working after their answer.
        self._sent, self._streams = 0, False
        names = [name for name, _ in request.headers_bytes]
        if names.count(b"host") != 1 and request.version > (1, 0):  # RFC 9112, section 3.2
            self._send_error_response(400, "Host must be sent once")
            return False
        if any(name == b"expect" and value.lower() != CONTINUE for name, value in request.headers_bytes):
            self._send_error_response(417, "Expect must be 100-continue")
            return False
        return bool(await self._handle_http_request(request, sockname, peername))

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """Answer malformed HTTP with a problem, too."""
        if self._closed:  # gunicorn also calls this if the client has gone
            return
        request_id, about = begin_request(), {"event": "request_invalid"}
        client = (self.transport.get_extra_info("peername") or [""])[0]
        # After a colon, gunicorn quotes the client, perhaps a mistyped header with a token.
        self.log.warning("Invalid request from ip=%s: %s", client, message.split(": ")[0], extra=about)
        detail = f"This is not HTTP as we take it: {message}"
        if status == 500:  # our answer couldn't be sent, as when the clock is beyond Python's last year
            detail = "The service failed while it answered. The outcome is unknown."
        problem = Problem(title(status), status, detail)
        body = msgspec.json.encode(problem)
        head = (
            f"HTTP/1.1 {status} {problem.title}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            f"{REQUEST_ID}: {request_id}\r\nContent-Type: application/problem+json\r\n\r\n"
        )
        self._callback_parser = None  # ignore the rest of the request if it still comes
        self.transport.write((head.encode() + body)[self._sent == 1 :])
