"""The id of the request that a thread works on: in its answer, and in the log lines that it causes."""

import re
from contextvars import ContextVar
from secrets import token_hex

HEADER = "X-Request-ID"
REQUEST: ContextVar[str] = ContextVar("request", default="")  # empty: no request


def begin(given: str | None = None) -> str:
    """Take the id that a client or a proxy gives, if it can stand in a log line, or make one."""
    REQUEST.set(given if given and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else token_hex(8))
    return REQUEST.get()
