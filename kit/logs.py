"""How the process logs: one line an event to standard error, as text or JSON, at a bounded rate."""

import json
import logging
import re
import time
from collections.abc import Mapping

from gunicorn.glogging import Logger

from kit.settings import Settings

BURST = 10  # lines that one message may have a second


class JsonLines(logging.Formatter):
    """One JSON object a line: the event, the message that people read, and the fields that are named in it."""

    def format(self, record):
        line = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        line |= {"event": str(record.msg), "message": record.getMessage()}
        if isinstance(record.args, Mapping):
            # Only those that the event names: gunicorn hands over every header of a request.
            line["fields"] = {
                name: str(record.args[name]) for name in re.findall(r"%\((\w+)\)", str(record.msg))
            }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Bounded(logging.Filter):
    """Lets each place in the code warn BURST times a second; its next warning then tells how many were left out.

    Whoever can make the service complain could fill its disk otherwise. What is counted is not the message, since
    gunicorn puts into it what it was sent, and every one would be another.
    """

    def __init__(self):
        super().__init__()
        self.seen: dict[
            tuple[str, int], tuple[int, int]
        ] = {}  # of each place: the second, and how often it came

    def filter(self, record):
        if record.levelno < logging.WARNING:
            return True
        if str(record.msg).startswith("Invalid request from"):
            # gunicorn then quotes what it cannot read, which may be a mistyped header with somebody's token.
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
    """gunicorn's logger, which would put together a line for each request also where nobody reads it."""

    def access(self, *request):
        if self.access_log.isEnabledFor(logging.INFO):
            super().access(*request)


class Failures:
    """Stands in for `wsgi.errors`, where Bottle writes the traceback of a request that failed: one record for each."""

    def write(self, text: str) -> None:
        logging.getLogger("app").error("a request failed: %s", text.strip())

    def flush(self) -> None:
        pass


def configuration(settings: Settings) -> dict:
    """What `logging.config.dictConfig` takes, for gunicorn and everything in it."""
    return {
        "formatters": {
            "text": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            "json": {"()": JsonLines},
        },
        "filters": {"bounded": {"()": Bounded}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": settings.log_format,
                "filters": ["bounded"],
            }
        },
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"propagate": True},
            # A line per request is for those who follow one.
            "gunicorn.access": {
                "propagate": True,
                "level": "INFO" if settings.log_level == "DEBUG" else "WARNING",
            },
            "peewee": {"level": "INFO"},  # below that it logs every statement
        },
    }
