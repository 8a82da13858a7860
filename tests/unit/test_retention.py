"""RETENTION_DAYS: what is finished and old is deleted in steps, and everything else stays."""

from uuid import UUID

import pytest

import models
from batch import DELETION
from kit.clock import SECOND
from kit.storage import execute
from ledger import DAY
from models import FIRST
from postgres import BOTH
from stepped import Bench

DAYS = 30
INSERT = """INSERT INTO "transaction"
    (id, station_id, status, created, updated, attempts, retry_at, expires_at) VALUES {}"""
both = pytest.mark.parametrize("emptied", BOTH, indirect=True)


@pytest.fixture
def bench(emptied):
    bench = Bench(database_url=emptied[1], retention_days=DAYS)
    yield bench
    bench.close()


def insert(bench: Bench, count: int, updated: int, status: str = "COMPLETED") -> None:
    """Store transactions that changed at this time, all in one moment."""
    later = 2 * bench.clock.steady() if status == "PENDING" else "NULL"
    first = len(bench.list())
    rows = (
        f"('{UUID(int=first + number).hex}', 1, '{status}', {updated}, {updated}, 1, {later}, {later})"
        for number in range(count)
    )
    execute(bench.database, INSERT.format(", ".join(rows)))


def left(bench: Bench, rounds: int = 1) -> list[int]:
    """How many transactions are left after each of these rounds of the ledger."""
    found = []
    for _ in range(rounds):
        bench.step(0.25)
        found.append(len(bench.list()))
    return found


def test_a_clock_that_was_ahead_for_a_moment_deletes_nothing(bench, caplog):
    bench.clock.wall_now += 400 * DAY
    (future,) = bench.create()
    bench.clock.wall_now -= 400 * DAY
    insert(bench, 5, bench.clock.wall() - DAYS * DAY - SECOND)
    assert left(bench, 3) == [6, 6, 6]
    behind, deleted = "energy2go_clock_behind_seconds", "energy2go_deleted_total"
    assert (round(value(bench, behind), -1), value(bench, deleted)) == (400 * DAY / SECOND, 0)
    assert caplog.text.count("s ahead of the clock") == 1
    # It goes on when the clock has caught up but for a minute, or when the row is corrected.
    statement = 'UPDATE "transaction" SET updated = ? WHERE id = ?'
    execute(bench.database, statement, bench.clock.wall() + 59 * SECOND, future.hex)
    assert left(bench) == [1]
    assert (round(value(bench, behind)), value(bench, deleted)) == (59, 5)


def value(bench: Bench, name: str) -> float:
    """The value of one of the ledger's metrics."""
    samples = [sample for metric in bench.ledger.collect() for sample in metric.samples]
    (found,) = [sample.value for sample in samples if sample.name == name]
    return found


@both
def test_each_round_deletes_a_few_hundred_past_what_is_pending(bench):
    old = bench.clock.wall() - DAYS * DAY - 10 * SECOND
    insert(bench, 2 * DELETION, old, "PENDING")
    insert(bench, DELETION + 1, old + SECOND)
    assert models.known_changes(bench.database)[0] == FIRST
    assert left(bench, 5) == [n + 2 * DELETION for n in (DELETION + 1, DELETION + 1, 1, 0, 0)]
    assert models.known_changes(bench.database)[0][0] == old + SECOND


def test_deletions_are_logged_when_they_end_and_once_a_minute_while_they_last(bench, caplog):
    caplog.set_level("INFO")
    reported = lambda: [record.count for record in caplog.records if hasattr(record, "count")]  # noqa: E731
    for _ in range(130):  # more than two minutes
        insert(bench, 1, bench.clock.wall() - DAYS * DAY - SECOND)
        bench.step(1)
    assert reported() == [61, 61]
    for _ in range(60):
        bench.step(1)
    assert sum(reported()) == value(bench, "energy2go_deleted_total") == 130
