"""How the process logs: one line an event to standard error, as text or JSON, at a bounded rate."""

import logging
import time

import msgspec

from settings import Settings

BURST = 10  # lines that one message may have a second


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record):
        line = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class Bounded(logging.Filter):
    """Lets each warning or error through BURST times a second; the next one then tells how many were left out.

    Whoever can make the service complain could fill its disk otherwise.
    """

    def __init__(self):
        super().__init__()
        self.seen: dict[str, tuple[int, int]] = {}  # of each message: the second, and how often it came

    def filter(self, record):
        if record.levelno < logging.WARNING:
            return True
        second, count = self.seen.get(record.msg, (0, 0))
        if second == int(time.monotonic()):
            self.seen[record.msg] = second, count + 1
            return count < BURST
        if count > BURST:
            record.msg, record.args = f"{record.getMessage()} ({count - BURST} like this were left out)", ()
        self.seen[record.msg] = int(time.monotonic()), 1
        return True


def configuration(settings: Settings) -> dict:
    """What `logging.config.dictConfig` takes, for gunicorn and everything in it."""
    return {
        "formatters": {
            "text": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            "json": {"()": JsonLines},
        },
        "filters": {"bounded": {"()": Bounded}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": settings.log_format, "filters": ["bounded"]}
        },
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"propagate": True},
            # A line per request is for those who follow one.
            "gunicorn.access": {"propagate": True, "level": "INFO" if settings.log_level == "DEBUG" else "WARNING"},
            "peewee": {"level": "INFO"},  # below that it logs every statement
        },
    }
