"""Requests that wait for a verdict: what wakes them, and how many may wait."""

import pytest

import models
from kit.settings import Settings
from programs import wait_until
from schemas import Verdict
from stepped import Bench


@pytest.fixture
def bench(database_url):
    bench = Bench(Settings(database_url=database_url))
    yield bench
    bench.close()


def waiters(bench) -> int:
    return len(bench.ledger.waiting)


def test_a_waiter_is_woken_by_the_commit_of_its_verdict(bench):
    (key,) = bench.create()
    waiting = bench.run(bench.ledger.wait, key, 30)
    wait_until(lambda: waiters(bench), "it waits")
    assert not waiting.done()
    bench.answer(key)
    bench.step()
    assert waiting.result(5) is True
    assert not waiters(bench)


def test_a_waiter_finds_the_verdict_that_another_process_stored(bench):
    (key,) = bench.create()
    waiting = bench.run(bench.ledger.wait, key, 30)
    wait_until(lambda: waiters(bench), "it waits")
    models.settle(bench.database, [Verdict(key, "ERROR")], bench.clock.now, bench.clock.now)
    bench.step(0.1)
    assert waiting.result(5) is True


def test_a_waiter_gives_up_when_the_process_stops(bench):
    (key,) = bench.create()
    bench.ledger.stopping = lambda: True
    waiting = bench.run(bench.ledger.wait, key, 30)
    wait_until(lambda: waiters(bench), "it waits")
    bench.step(0.1)
    assert waiting.result(5) is True


def test_at_most_so_many_requests_wait(bench):
    bench.settings = Settings(database_url=bench.settings.database_url, waits=8)
    bench.restart()
    (key,) = bench.create()
    waiting = [bench.run(bench.ledger.wait, key, 30) for _ in range(8)]
    wait_until(lambda: waiters(bench) == 8, "eight wait")
    assert bench.ledger.wait(key, 30) is False
    bench.answer(key)
    bench.step()
    assert all(future.result(5) for future in waiting)


def test_it_says_when_a_status_has_changed_and_only_then(bench):
    told = []
    bench.ledger._changed = lambda: told.append(bench.list()[0].status)
    (key,) = bench.create()
    bench.step(1)
    assert told == ["PENDING"]
    bench.step(bench.settings.validation_timeout)
    assert told == ["PENDING", "EXPIRED"]
    bench.answer(key)
    bench.answer(key)
    bench.step(1)
    assert told == ["PENDING", "EXPIRED", "COMPLETED"]


def test_a_metric_counts_the_requests_that_wait(bench):
    keys = bench.create(2)
    waiting = [bench.run(bench.ledger.wait, key, 30) for key in (*keys, *keys)]
    wait_until(lambda: waiters(bench) == 4, "four wait, two each for the same")
    (gauge,) = [metric for metric in bench.ledger.collect() if metric.name == "energy2go_waiters"]
    assert [sample.value for sample in gauge.samples] == [4]
    for key in keys:
        bench.answer(key)
    bench.step()
    assert all(future.result(5) for future in waiting)


def test_a_verdict_that_is_there_already_is_not_waited_for(bench):
    (key,) = bench.create()
    bench.answer(key)
    bench.step()
    assert bench.ledger.wait(key, 30) is True
