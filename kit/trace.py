"""The id of the request that is worked on: in its answer, and in the log lines that it causes."""

import re
from contextvars import ContextVar
from random import getrandbits

HEADER = "X-Request-ID"
REQUEST: ContextVar[str] = ContextVar("request", default="")  # empty: no request
GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def begin(given: str | None = None) -> str:
    """Take the id that a client or a proxy gives, if it can stand in a log line, or make one."""
    taken = given if given and GIVEN.fullmatch(given) else f"{getrandbits(64):016x}"
    REQUEST.set(taken)
    return taken
