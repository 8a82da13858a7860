"""Time in whole microseconds since 1970 (UTC), and ids that sort by it."""

import time
from datetime import UTC, datetime, timedelta
from secrets import randbits
from uuid import UUID

SECOND = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """Microseconds since 1970: `wall` for people to read; `steady`, which never jumps, for deadlines."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def wall(self) -> int:
        return time.time_ns() // 1000

    def steady(self) -> int:
        return (self._offset + time.monotonic_ns()) // 1000


def moment(microseconds: int) -> datetime:
    """A stored time as a datetime in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def microseconds(time: datetime) -> int:
    """A datetime with a zone as it is stored."""
    return (time - EPOCH) // timedelta(microseconds=1)


def uuid7(created: int, counter: int) -> UUID:
    """An id that sorts by time: a UUIDv7 (RFC 9562, section 6.2, method 3) from microseconds and a counter.

    48 bits are milliseconds, 12 the fraction, 14 the counter, and 48 are random.
    """
    milliseconds, microseconds = divmod(created, 1000)
    high = milliseconds << 16 | 7 << 12 | microseconds * 4096 // 1000
    low = 2 << 62 | counter << 48 | randbits(48)
    return UUID(int=high << 64 | low)


def below(created: int) -> UUID:
    """The lowest id in this millisecond."""
    return UUID(int=max(0, created) // 1000 << 80)
