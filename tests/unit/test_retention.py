"""RETENTION_DAYS: what is finished and old is deleted in steps, and everything else stays."""

from uuid import UUID

import pytest

import models
from batch import DELETION
from kit.clock import SECOND
from kit.errors import NotFound
from kit.settings import Settings
from kit.storage import execute, is_postgresql
from ledger import DAY
from models import FIRST
from schemas import Status
from stepped import Bench

DAYS = 30
INSERT = """INSERT INTO "transaction"
    (id, station_id, status, created, updated, attempts, retry_at, expires_at) VALUES {}"""


@pytest.fixture
def bench(emptied):
    bench = Bench(Settings(database_url=emptied[1], retention_days=DAYS))
    yield bench
    bench.close()


def insert(bench: Bench, count: int, updated: int, status: str = "COMPLETED") -> None:
    """Store transactions that changed at this time, all in one moment."""
    later = 2 * bench.clock.steady() if status == "PENDING" else "NULL"
    first = count_rows(bench)
    rows = (
        f"('{UUID(int=first + number).hex}', 1, '{status}', {updated}, {updated}, 1, {later}, {later})"
        for number in range(count)
    )
    execute(bench.database, INSERT.format(", ".join(rows)))


def count_rows(bench: Bench) -> int:
    return execute(bench.database, 'SELECT count(*) FROM "transaction"')[0][0]


def a_round(bench: Bench) -> None:
    bench.step(0.25)


def test_what_is_finished_is_deleted_after_its_days_with_its_idempotency_key(bench):
    (key,) = bench.create(key="used")
    bench.answer(key)
    bench.step()
    bench.step(DAYS * DAY / SECOND - 1)
    assert bench.status(key) is Status.COMPLETED
    bench.step(2)
    with pytest.raises(NotFound):
        bench.status(key)
    (again,) = bench.create(key="used")
    assert again != key


def test_every_status_but_pending_is_deleted_from_the_first_round_on_without_a_broker(bench):
    for status in ("COMPLETED", "ERROR", "EXPIRED", "PENDING"):
        insert(bench, 1, bench.clock.wall() - DAYS * DAY - SECOND, status)
    bench.publisher.subscribed = False
    bench.restart()
    assert count_rows(bench) == 1


def test_what_is_pending_stays_until_it_has_been_finished_for_so_long(bench):
    (key,) = bench.create()
    bench.publisher.subscribed = False  # its clock stops
    bench.step(2 * DAYS * DAY / SECOND)
    assert bench.status(key) is Status.PENDING
    bench.answer(key)
    bench.step()
    bench.step(DAYS * DAY / SECOND - 1)
    assert bench.status(key) is Status.COMPLETED


@pytest.mark.parametrize("restart", [True, False])
def test_a_clock_that_was_ahead_for_a_moment_deletes_nothing(bench, restart, caplog):
    insert(bench, 5, bench.clock.wall() - SECOND)
    bench.clock.wall_now += 400 * DAY
    (future,) = bench.create()
    bench.clock.wall_now -= 400 * DAY
    if restart:
        bench.restart()
    insert(bench, 5, bench.clock.wall() - DAYS * DAY - SECOND)
    for _ in range(3):
        a_round(bench)
        assert count_rows(bench) == 11
    assert value(bench, "energy2go_clock_behind_seconds") == pytest.approx(400 * DAY / SECOND, abs=1)
    assert value(bench, "energy2go_deleted_total") == 0
    assert caplog.text.count("s ahead of the clock") == 1
    # It goes on when the clock has caught up but for a minute, or when the row is corrected.
    statement = 'UPDATE "transaction" SET updated = ? WHERE id = ?'
    execute(bench.database, statement, bench.clock.wall() + 59 * SECOND, future.hex)
    a_round(bench)
    assert count_rows(bench) == 6
    assert value(bench, "energy2go_deleted_total") == 5
    assert 58 < value(bench, "energy2go_clock_behind_seconds") < 60


def value(bench: Bench, name: str) -> float:
    """The value of one of the ledger's metrics."""
    samples = [sample for metric in bench.ledger.collect() for sample in metric.samples]
    (found,) = [sample.value for sample in samples if sample.name == name]
    return found


def reported(caplog) -> list[int]:
    """What the log says of deletions."""
    return [
        record.count for record in caplog.records if getattr(record, "event", "") == "transactions_deleted"
    ]


def test_deletions_are_logged_when_they_end_and_once_a_minute_while_they_last(bench, caplog):
    caplog.set_level("INFO")
    old = bench.clock.wall() - DAYS * DAY - SECOND
    insert(bench, 2 * DELETION + 1, old)
    for _ in range(3):
        a_round(bench)
    assert reported(caplog) == []
    a_round(bench)
    assert reported(caplog) == [2 * DELETION + 1]
    for _ in range(130):  # more than two minutes
        insert(bench, 1, old)
        bench.step(1)
    assert reported(caplog)[1:] == [61, 61]
    for _ in range(60):
        bench.step(1)
    assert sum(reported(caplog)) == value(bench, "energy2go_deleted_total") == 2 * DELETION + 131


def test_one_round_deletes_a_few_hundred_until_none_is_left(bench):
    insert(bench, 2 * DELETION + 1, old := bench.clock.wall() - DAYS * DAY - SECOND)
    assert models.deleted_until(bench.database) == FIRST
    (young,) = bench.create()
    left = []
    for _ in range(3):
        a_round(bench)
        left.append(count_rows(bench) - 1)
        assert models.deleted_until(bench.database)[0] == old
    assert left == [DELETION + 1, 1, 0]
    assert bench.status(young) is Status.PENDING


def test_many_old_ones_that_are_pending_do_not_hide_the_others(bench):
    old = bench.clock.wall() - DAYS * DAY - 10 * SECOND
    insert(bench, 2 * DELETION, old, "PENDING")
    insert(bench, 5, old + SECOND)
    bench.publisher.subscribed = False
    for _ in range(3):
        a_round(bench)
    assert count_rows(bench) == 2 * DELETION


def test_without_days_everything_is_kept(emptied):
    bench = Bench(Settings(database_url=emptied[1]))
    insert(bench, 1, 1)
    a_round(bench)
    assert count_rows(bench) == 1
    bench.close()


def test_it_reads_a_few_hundred_entries_of_an_index(bench, caplog):
    insert(bench, 3000, 1)
    with caplog.at_level("DEBUG", "peewee"):
        models.delete_finished(bench.database, 2, FIRST, DELETION)
    (look, values), *_ = [record.msg for record in caplog.records if record.name == "peewee"]
    assert values[-1] == DELETION
    explain = "EXPLAIN QUERY PLAN"
    if is_postgresql(bench.database):
        explain = "EXPLAIN"
        execute(bench.database, "ANALYZE")
    plan = str(bench.database.execute_sql(f"{explain} {look}", values).fetchall())
    assert "transaction_updated_id" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
