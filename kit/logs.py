"""How the process logs: one line per event to standard error, as text or JSON, at a limited rate."""

import logging
import os
import re
import select
import threading
import time
from collections.abc import Callable
from contextlib import ContextDecorator, suppress
from contextvars import ContextVar
from queue import SimpleQueue
from random import getrandbits
from typing import Any

import msgspec
from gunicorn.glogging import Logger
from pythonjsonlogger.json import JsonFormatter

from kit.settings import Settings

WARNINGS, LINES = 10, 100  # per second from one place in the code: warnings and errors, and INFO lines
MINUTE = 60_000_000  # microseconds
WAITING = 1000  # lines that may wait for the log thread
FLUSH_TIMEOUT = 0.5  # seconds to write the last lines
EXIT_TIMEOUT = 1.0  # seconds to log why the process must end
STDERR = 2  # its descriptor
REQUEST_ID = "X-Request-ID"  # a header of every answer
REQUEST: ContextVar[str] = ContextVar("request", default="")  # the current request's id
SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
RENAMED = {"levelname": "level", "name": "logger", "process": "pid"}
RENAMED |= {"request": "request_id", "exc_info": "traceback"}


def begin_request(given: str | None = None) -> str:
    """Use the id that the client or a proxy sent, if it is safe in a log line; otherwise make one."""
    REQUEST.set(given if given and SAFE_ID.fullmatch(given) else f"{getrandbits(64):016x}")
    return REQUEST.get()


def note(write: Callable[..., None], event: str, text: str, **fields: Any) -> None:
    """Log an event with its fields, as in `note(log.debug, "began", "%(job)s has begun", job=7)`."""
    write(text, fields, extra={"event": event, **fields}, stacklevel=2)


class Summary:
    """Counts events. Logs their number once they stop, or once a minute while they go on."""

    def __init__(self, write: Callable[..., None], event: str, text: str):
        self._write, self._event, self._text = write, event, text
        self._count = self._began = self._logged = 0

    def add(self, count: int, now: int) -> None:
        """Add events; 0 ends a series. `now` is in microseconds."""
        if not self._count:
            self._began = now
        self._count += count
        if self._count and now >= max(self._logged, self._began if count else 0) + MINUTE:
            note(self._write, self._event, self._text, count=self._count)
            self._count, self._logged = 0, now


def end_the_process(reason: str, error: BaseException | None) -> None:
    """Log why this process can't go on, and exit even if logging fails. gunicorn starts another one."""

    def log_reason() -> None:
        try:
            logging.critical("%s; the process ends", reason, exc_info=error, extra={"event": "thread_died"})
            logging.shutdown()
        except BaseException as failure:  # after the year 2262, Python can't make a record
            os.write(STDERR, msgspec.json.encode({"level": "CRITICAL", "message": f"{reason}: {failure!r}"}))

    try:
        thread = threading.Thread(target=log_reason, daemon=True)
        thread.start()
        thread.join(EXIT_TIMEOUT)
    finally:
        os._exit(1)  # gunicorn would stop for good at 3 or 4


class Context(logging.Filter):
    """Adds an event name and a request id (or None) to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.name = record.name.replace("gunicorn.error", "gunicorn")
        if not hasattr(record, "event"):
            record.event = record.name  # a library logged it
        record.request = getattr(record, "request", "") or REQUEST.get() or None
        return True


class Text(logging.Formatter):
    """Plain text: the time as RFC 3339 in UTC first, the request id last."""

    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line, request = super().formatMessage(record), getattr(record, "request", None)
        return f"{line} request={request}" if request else line


class RateLimit(logging.Filter):
    """Limits how many lines each place in the code logs per second. Its next line has the number left out.

    Otherwise a client could fill the disk. We count by place, since gunicorn's messages have clients' bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], tuple[int, int]] = {}  # by place: the second, and its lines

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        limit = WARNINGS if record.levelno >= logging.WARNING else LINES
        place, now = (record.pathname, record.lineno), int(time.monotonic())
        second, count = self.seen.get(place, (now, 0))
        if second != now:
            if count > limit:
                record.msg = f"{record.msg} ({count - limit} like this were left out)"
            count = 0
        self.seen[place] = now, count + 1
        return count < limit


class Harmless(suppress, ContextDecorator):
    """Decorates functions that may lose a log line, as after the year 2262."""


class Quiet(Logger):
    """gunicorn's logger without a line for each request; `kit.api` logs requests."""

    access_log_enabled = False

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        for name in ("critical", "error", "warning", "info", "exception"):  # would end gunicorn's master
            setattr(self, name, Harmless(OverflowError)(getattr(self, name)))

    def setup(self, cfg: Any) -> None:
        if not logging.root.handlers:  # otherwise each SIGHUP would leave a thread behind
            super().setup(cfg)


class Background(logging.Handler):
    """Writes the log in a thread, so that a full pipe blocks no other. Beyond WAITING, lines are lost."""

    dropped = 0  # lines that this process has lost

    def __init__(self) -> None:
        super().__init__()
        self.filters = [Context(), RateLimit()]
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # threads don't survive a fork

    def _begin(self) -> None:
        self._lines = SimpleQueue[logging.LogRecord]()
        self._thread: threading.Thread | None = None
        self._given = self._done = 0  # how many lines the thread was given, and has finished
        self._reported = Background.dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line to the thread. Our caller holds the handler's lock."""
        if self._lines.qsize() >= WAITING:
            Background.dropped += 1
            return
        if lost := Background.dropped - self._reported:
            record.msg = f"{record.msg} ({lost} lines before it were lost)"
            self._reported += lost
        self._given += 1
        self._lines.put(record)
        if not self._thread:
            thread = threading.Thread(target=self._write, name="log", daemon=True)
            with suppress(RuntimeError):  # too many threads; the next line tries again
                thread.start()
                self._thread = thread

    def _write(self) -> None:
        cut = b""  # a line break, if the last line was only partly written
        while True:
            record, rest = self._lines.get(), b""
            try:
                line = rest = cut + f"{self.format(record)}\n".encode(errors="backslashreplace")
                while rest:
                    # We avoid sys.stderr: if a thread blocks in it, its lock keeps the process from ending.
                    try:
                        rest = rest[os.write(STDERR, rest) :]
                    except BlockingIOError:  # another program has set O_NONBLOCK
                        select.select([], [STDERR], [])
                cut = b""
            except Exception:  # the reader has gone, the disk is full, or formatting failed
                cut = b"\n" if rest and rest != line else cut
                Background.dropped += 1
            self._done += 1

    def flush(self) -> None:
        """Wait until all lines are written. `logging.shutdown` calls this when the process ends."""
        until = time.monotonic() + FLUSH_TIMEOUT
        while self._done < self._given and time.monotonic() < until:
            time.sleep(0.005)


def configuration(settings: Settings) -> dict[str, Any]:
    """The logging configuration of gunicorn and the service, for `logging.config.dictConfig`."""
    no_debug = settings.log_level.replace("DEBUG", "INFO")  # these would log each connection and statement
    return {
        "formatters": {
            "text": {"()": Text, "fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            "json": {
                "()": JsonFormatter,
                "fmt": ["levelname", "event", "message", "request", "name", "process"],
                "rename_fields": RENAMED,
                "timestamp": "time",
                "defaults": {"time": None},  # so it comes first
            },
        },
        "handlers": {"stderr": {"()": Background, "formatter": settings.log_format}},
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {"gunicorn.error": {"propagate": True, "level": no_debug}, "peewee": {"level": no_debug}},
    }
