"""How the process logs: one line per event to standard error, as text or JSON, at a limited rate."""

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from gunicorn.glogging import Logger

from kit.settings import Settings
from kit.trace import REQUEST

BURST = 10  # lines that one message may have a second


def request_of(record: logging.LogRecord) -> str:
    """The id of the request that caused a line; empty if none did."""
    return getattr(record, "request", "") or REQUEST.get()


class TextLines(logging.Formatter):
    """Time, level, logger, message, and the request's id at the end of the line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        request = request_of(record)
        return super().formatMessage(record) + (f" request={request}" if request else "")


class JsonLines(logging.Formatter):
    """One JSON object per line: the event, the message for people, and the fields that the event names."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
        }
        if request := request_of(record):
            line["request"] = request
        line |= {"event": str(record.msg), "message": record.getMessage()}
        if isinstance(record.args, Mapping):
            # Only the fields that the event names: gunicorn hands over every header of a request.
            line["fields"] = {
                name: str(record.args[name]) for name in re.findall(r"%\((\w+)\)", str(record.msg))
            }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class RateLimit(logging.Filter):
    """Lets each place in the code warn BURST times a second, and then says how many warnings it left out.

    Otherwise a client could fill the disk with warnings. The place counts and not the message, since
    gunicorn's messages contain what the client sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], tuple[int, int]] = {}  # by place: the second, and how many in it

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        if str(record.msg).startswith("Invalid request from"):
            # gunicorn quotes what it cannot read, which may be a mistyped header with a token.
            record.msg = ": ".join(record.msg.split(": ", 2)[:2])
        place = record.pathname, record.lineno
        second, count = self.seen.get(place, (0, 0))
        if second == int(time.monotonic()):
            self.seen[place] = second, count + 1
            return count < BURST
        if count > BURST:
            record.msg, record.args = f"{record.getMessage()} ({count - BURST} like this were left out)", ()
        self.seen[place] = int(time.monotonic()), 1
        return True


class RequestLog(Logger):
    """gunicorn's logger, which otherwise formats a line for each request even if it is not shown."""

    def access(self, *request: Any) -> None:
        if self.access_log.isEnabledFor(logging.INFO):
            super().access(*request)


class Failures:
    """Takes the place of `wsgi.errors`, where Bottle writes tracebacks: one log record for each."""

    def write(self, text: str) -> None:
        logging.getLogger("app").error("a request failed: %s", text.strip())

    def flush(self) -> None:
        pass


def configuration(settings: Settings) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes, for gunicorn and everything in it."""
    return {
        "formatters": {
            "text": {"()": TextLines, "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            "json": {"()": JsonLines},
        },
        "filters": {"rate": {"()": RateLimit}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": settings.log_format,
                "filters": ["rate"],
            }
        },
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"propagate": True},
            # One line per request only helps while someone follows them.
            "gunicorn.access": {
                "propagate": True,
                "level": "INFO" if settings.log_level == "DEBUG" else "WARNING",
            },
            "peewee": {"level": "INFO"},  # below that it logs every statement
        },
    }
