"""The wall clock steps, differs between processes, or starts in 1970: order and times stay right."""

import logging

import pytest

import models
from batch import create
from kit.clock import SECOND
from kit.storage import execute
from ledger import Draft, Job
from schemas import Status

HOUR = 3600 * SECOND


def rows(bench) -> list[tuple]:
    """Created and updated of each transaction, in the order of ids."""
    return execute(bench.database, 'SELECT created, updated FROM "transaction" ORDER BY id')


def ids(bench) -> list:
    """All ids, oldest first, as clients see them."""
    return [transaction.id for transaction in bench.list()][::-1]


def in_order(bench, keys: list) -> None:
    """Check that ids, `created` and `updated` follow the order of commits."""
    assert ids(bench) == keys
    found = rows(bench)
    created, updated = [row[0] for row in found], [row[1] for row in found]
    assert created == sorted(created)
    assert len(set(updated)) == len(updated)
    assert all(row[1] >= row[0] for row in found)


@pytest.mark.parametrize("restart", [True, False])
def test_newest_first_stays_the_order_of_commits(bench, restart):
    keys = bench.create()
    for step in (3600, -3600, -3600, 7200, -86400, 86400, -1):
        bench.clock.wall_now += step * SECOND
        if restart:
            bench.clock.now += step * SECOND
            bench.restart()
        keys += bench.create()
        bench.answer(keys[-1])
        bench.step()
        keys += bench.create()
    in_order(bench, keys)
    assert bench.status(keys[1]) is Status.COMPLETED


def test_a_machine_that_starts_in_1970_and_then_learns_the_time(bench):
    bench.clock.now = bench.clock.wall_now = 5 * SECOND
    bench.restart()
    keys = bench.create()
    assert models.get_transaction(bench.database, keys[0]).created.year == 1970
    bench.clock.wall_now = 1_800_000_000 * SECOND
    keys += bench.create()
    assert models.get_transaction(bench.database, keys[1]).created.year == 2027
    bench.answer(keys[0])
    bench.step()
    in_order(bench, keys)
    assert min(delays(bench)) >= 0


def delays(bench) -> list[float]:
    (metric,) = bench.ledger.delays.collect()
    return [sample.value for sample in metric.samples]


def gauges(bench) -> dict[str, float]:
    bench.ledger.pending = models.pending(bench.database)
    return {one.name: one.samples[0].value for one in bench.ledger.collect() if one.type == "gauge"}


@pytest.mark.parametrize("step", [-3600, 3600])
def test_no_metric_is_negative_or_an_hour_off(bench, step):
    (key, _) = bench.create(2)
    bench.clock.wall_now += step * SECOND
    bench.answer(key)
    bench.step(2)
    assert min(delays(bench)) >= 0
    assert 2 in delays(bench)  # their sum
    assert 0 <= gauges(bench)["energy2go_oldest_pending_seconds"] <= 3602


def test_a_row_that_is_written_again_is_updated_when_it_is_committed(bench):
    first, poisoned, last = (bench.put(Job(create, Draft(one))) for one in (1, object(), 1))
    bench.step()
    assert isinstance(poisoned.result, Exception)
    found = [job.result for job in (first, last)]
    assert [models.get_transaction(bench.database, one.id) for one in found] == found
    in_order(bench, [one.id for one in found])


@pytest.mark.parametrize(("hours", "warned"), [(1, 1), (0.01, 0), (-1, 0)])
def test_rows_ahead_of_the_clock_are_named_once_at_the_start(bench, caplog, hours, warned):
    bench.create()
    bench.clock.wall_now -= int(hours * HOUR)
    with caplog.at_level(logging.WARNING):
        bench.restart()
        bench.create()
        bench.create()
    said = [record.getMessage() for record in caplog.records if "ahead of the clock" in record.getMessage()]
    assert len(said) == warned
