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

WARNINGS, LINES = 10, 100  # that one place in the code may log a second; lines are those of level INFO
MINUTE = 60_000_000  # microseconds
WAITING = 1000  # lines that wait for the thread that writes them
ENDING = 0.5  # seconds to write the last ones
LAST_WORDS = 1.0  # seconds that a process which must end may take to say why
STDERR = 2  # its descriptor
REQUEST_ID = "X-Request-ID"  # a header of every answer
REQUEST: ContextVar[str] = ContextVar("request", default="")  # the id of the one that is worked on, or empty
GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def begin_request(given: str | None = None) -> str:
    """Take the id that a client or a proxy gives, if it can stand in a log line, or make one."""
    taken = given if given and GIVEN.fullmatch(given) else f"{getrandbits(64):016x}"
    REQUEST.set(taken)
    return taken


def note(write: Callable[..., None], event: str, text: str, **fields: Any) -> None:
    """Log an event with its fields, as in `note(log.debug, "began", "%(job)s has begun", job=7)`."""
    write(text, fields, extra={"event": event, **fields}, stacklevel=2)


class Summary:
    """Counts events, and logs how many there were when they end, or once a minute while they go on."""

    def __init__(self, write: Callable[..., None], event: str, text: str):
        self._write, self._event, self._text = write, event, text
        self._count = self._began = self._logged = 0

    def add(self, count: int, now: int) -> None:
        """Add this many events; 0 ends a series. `now` is in microseconds. Logs at most once a minute."""
        if not self._count:
            self._began = now
        self._count += count
        if self._count and now >= max(self._logged, self._began if count else 0) + MINUTE:
            note(self._write, self._event, self._text, count=self._count)
            self._count, self._logged = 0, now


def end_the_process(reason: str, error: BaseException | None) -> None:
    """Log why this process cannot go on, and end it; gunicorn starts another. Nothing can prevent that."""

    def speak() -> None:
        try:
            logging.critical("%s; the process ends", reason, exc_info=error, extra={"event": "thread_died"})
            logging.shutdown()
        except BaseException as failure:  # beyond the year 2262, Python cannot make a record
            os.write(STDERR, msgspec.json.encode({"level": "CRITICAL", "message": f"{reason}: {failure!r}"}))

    try:
        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        thread.join(LAST_WORDS)
    finally:
        os._exit(1)  # 3 and 4 would halt gunicorn


class Context(logging.Filter):
    """Adds the name of the event, and the id of the request that caused the line, or None."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.name = record.name.replace("gunicorn.error", "gunicorn")  # where it logs all but requests
        if not hasattr(record, "event"):
            record.event = record.name  # a line of a library
        record.request = getattr(record, "request", "") or REQUEST.get() or None
        return True


class Text(logging.Formatter):
    """A line for people: the time as RFC 3339 in UTC, and the id of the request at the end."""

    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line, request = super().formatMessage(record), getattr(record, "request", None)
        return f"{line} request={request}" if request else line


class RateLimit(logging.Filter):
    """Limits how often each place in the code logs in a second; its next line says how many were left out.

    Otherwise a client could fill the disk. The place counts and not the message, since gunicorn's messages
    contain what the client sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], tuple[int, int]] = {}  # by place: the second, and how many in it

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        most = WARNINGS if record.levelno >= logging.WARNING else LINES
        place = record.pathname, record.lineno
        second, count = self.seen.get(place, (0, 0))
        if second == int(time.monotonic()):
            self.seen[place] = second, count + 1
            return count < most
        if count > most:
            record.msg = f"{record.msg} ({count - most} like this were left out)"
        self.seen[place] = int(time.monotonic()), 1
        return True


class Harmless(suppress, ContextDecorator):
    """Decorates what may lose a line that cannot be made, as when the clock is beyond the year 2262."""


class Quiet(Logger):
    """gunicorn's logger without its line for each request; `kit.api` writes its own."""

    access_log_enabled = False

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        for name in ("critical", "error", "warning", "info", "exception"):  # would end gunicorn's master
            setattr(self, name, Harmless(OverflowError)(getattr(self, name)))

    def setup(self, cfg: Any) -> None:
        if not logging.root.handlers:  # SIGHUP calls this again, and would leave a thread behind each time
            super().setup(cfg)


class Background(logging.Handler):
    """Lets a thread write the log, so that a full pipe stops nothing. Past WAITING, lines are lost."""

    dropped = 0  # lines that this process lost

    def __init__(self) -> None:
        super().__init__()
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # threads do not survive a fork

    def _begin(self) -> None:
        self._lines = SimpleQueue[logging.LogRecord]()
        self._thread: threading.Thread | None = None
        self._given = self._done = 0  # how many lines the thread was given, and has dealt with
        self._reported = Background.dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line to the thread. The handler's lock is held, so one thread at a time comes here."""
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
            with suppress(RuntimeError):  # there are too many threads; the next line tries again
                thread.start()
                self._thread = thread

    def _write(self) -> None:
        cut = b""  # ends a line of which only a part was written
        while True:
            record, rest = self._lines.get(), b""
            try:
                line = rest = cut + f"{self.format(record)}\n".encode(errors="backslashreplace")
                while rest:
                    # Not sys.stderr: its lock, held by a thread that cannot write, would keep the process.
                    try:
                        rest = rest[os.write(STDERR, rest) :]
                    except BlockingIOError:  # another program has set O_NONBLOCK
                        select.select([], [STDERR], [])
                cut = b""
            except Exception:  # the reader has gone, the disk is full, or the line has no form
                cut = b"\n" if rest and rest != line else cut
                Background.dropped += 1
            self._done += 1

    def flush(self) -> None:
        """Wait a moment until all is written. `logging.shutdown` calls this when the process ends."""
        until = time.monotonic() + ENDING
        while self._done < self._given and time.monotonic() < until:
            time.sleep(0.005)


class Failures:
    """Takes the place of `wsgi.errors`, where Bottle writes tracebacks: one log record for each."""

    def write(self, text: str) -> None:
        extra = {"event": "request_crashed"}
        logging.getLogger("app").error("a request failed: %s", text.strip(), extra=extra)

    def flush(self) -> None:
        pass


def configuration(settings: Settings) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes, for gunicorn and everything in it."""
    level = settings.log_level
    return {
        "formatters": {
            "text": {"()": Text, "fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            "json": {
                "()": JsonFormatter,
                "fmt": ["levelname", "event", "message", "request", "name", "process"],
                "rename_fields": {
                    "levelname": "level",
                    "name": "logger",
                    "process": "pid",
                    "request": "request_id",
                    "exc_info": "traceback",
                },
                "timestamp": "time",
                "defaults": {"time": None},  # so it comes first
            },
        },
        "filters": {"context": {"()": Context}, "rate": {"()": RateLimit}},
        "handlers": {
            "stderr": {
                "class": "kit.logs.Background",
                "formatter": settings.log_format,
                "filters": ["context", "rate"],
            }
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            # At DEBUG, these tell of every connection and of every statement.
            "gunicorn.error": {"propagate": True, "level": level.replace("DEBUG", "INFO")},
            "peewee": {"level": level.replace("DEBUG", "INFO")},
        },
    }
