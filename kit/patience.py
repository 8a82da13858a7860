"""How long a request has waited: for a slot and for its commit it waits only so long in all."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Request(threading.local):
    began: float | None = None  # time.monotonic()


_request = _Request()


@contextmanager
def request() -> Iterator[None]:
    """Inside this block the thread works on a request that has been received completely."""
    _request.began = time.monotonic()
    try:
        yield
    finally:
        _request.began = None


def waited() -> float:
    """For how many seconds the thread has worked on its request; 0 without one."""
    return 0.0 if _request.began is None else time.monotonic() - _request.began
