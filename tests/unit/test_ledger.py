"""The single writer: called step by step with the test's own clock, and run as a thread."""

import subprocess
import sys
import threading

import pytest
from uuid_utils.compat import uuid7

import ledger as ledger_module
import models
import storage
from jobs import Call, Creation, Unavailable, Verdict
from ledger import Ledger, ledger_clock
from models import SECOND, Order
from programs import ROOT, wait_until
from schemas import Status
from settings import Settings
from stepped import Bench, Wire


@pytest.fixture
def settings(database_url):
    return Settings(database_url=database_url)


@pytest.fixture
def bench(settings):
    storage.bind(settings.database_url)
    bench = Bench(settings)
    yield bench
    bench.clock.advance(60)  # waiting requests withdraw
    bench.pool.shutdown()
    storage.close()


def test_one_step_answers_all_waiting_requests(bench):
    keys = bench.create(10)
    assert [bench.status(key) for key in keys] == [Status.PENDING] * 10
    assert sorted(bench.wire.published) == sorted(keys)


def test_a_question_is_published_after_its_commit_and_an_answer_acknowledged_after_its(bench):
    seen = []

    class Other(Wire):
        def publish(self, questions):
            # Another connection sees only what is committed.
            seen.extend(bench.run(bench.status, q.transaction_id).result() for q in questions)

    bench.ledger._wire = Other()
    (key,) = bench.create()
    bench.ledger.settle(
        Verdict(key, Status.ERROR, lambda: seen.append(bench.run(bench.status, key).result()))
    )
    bench.step()
    assert seen == [Status.PENDING, Status.ERROR]


def test_a_poisoned_job_in_a_full_batch_fails_alone(bench):
    orders = [Order(uuid7(), 1, None) for _ in range(ledger_module.BATCH - 1)]
    orders.insert(250, Order(object(), 1, None))
    jobs = [Creation(order) for order in orders]
    for job in jobs:
        bench.ledger._queue.put(job)
    while not bench.ledger._queue.empty():  # one step in SQLite
        bench.step()
    poisoned = jobs.pop(250)
    assert not isinstance(poisoned.exception(0), models.Refusal | None)
    assert [job.result(0).id for job in jobs] == [job.order.transaction_id for job in jobs]
    assert len(models.list_transactions(10_000)) == ledger_module.BATCH - 1


def test_a_poisoned_verdict_is_acknowledged_and_fails_alone(bench):
    (key,) = bench.create()
    bad, good = bench.answer(object()), bench.answer(key)
    bench.step()
    assert bad == good == [True]
    assert bench.status(key) is Status.COMPLETED


def test_a_refused_change_fails_alone(bench):
    refused = bench.submit(bench.ledger.change, models.delete_station, 77)
    made = bench.submit(bench.ledger.change, models.create_station, "another")
    bench.step()
    assert made.result(1).id == 2
    with pytest.raises(models.NotFound):
        refused.result(1)


def test_a_request_withdraws_after_ten_seconds_and_is_never_written(bench):
    waiting = bench.submit(bench.ledger.create, 1, None)
    bench.clock.advance(9.9)
    assert not waiting.done()
    bench.clock.advance(0.2)
    with pytest.raises(Unavailable, match="nothing was stored"):
        waiting.result(5)
    bench.step()
    assert models.list_transactions(5) == []


def test_a_job_that_was_taken_is_waited_for(bench):
    taken, release = threading.Event(), threading.Event()

    def slow():
        taken.set()
        release.wait(10)
        return "done"

    waiting = bench.submit(bench.ledger.change, slow)
    stepping = bench.run(bench.step)
    assert taken.wait(5)
    bench.clock.advance(60)
    release.set()
    assert waiting.result(5) == "done"
    stepping.result(5)


def test_a_full_queue_refuses_requests_and_drops_verdicts(bench, monkeypatch):
    monkeypatch.setattr(ledger_module, "QUEUE", 1)
    first = bench.submit(bench.ledger.create, 1, None)
    with pytest.raises(Unavailable, match="Too many"):
        bench.ledger.create(1, None)
    assert bench.answer(uuid7()) == [True]
    bench.step()
    assert bench.status(first.result(1).id) is Status.PENDING


def test_the_first_verdict_wins_and_the_others_are_counted(bench):
    first, second = bench.create(2)
    answers = [
        (first, "ERROR"),
        (first, "COMPLETED"),
        (second, "COMPLETED"),
        (second, "COMPLETED"),
        (uuid7(), "ERROR"),
    ]
    acknowledged = [bench.answer(key, Status(status)) for key, status in answers]
    bench.step()
    assert acknowledged == [[True]] * 5
    assert bench.status(first) is Status.ERROR
    bench.answer(second, Status.ERROR)
    bench.step()
    assert bench.status(second) is Status.COMPLETED
    counts = {
        kind: bench.ledger.counts[kind]
        for kind in ("settled", "duplicate", "contradiction", "unknown", "late")
    }
    assert counts == {"settled": 2, "duplicate": 1, "contradiction": 2, "unknown": 1, "late": 0}


def test_a_verdict_and_the_timeout_in_one_step_settle(bench):
    (key,) = bench.create()
    bench.answer(key)
    bench.step(61)
    assert bench.status(key) is Status.COMPLETED


def test_silence_expires_and_a_late_verdict_settles(bench):
    (key,) = bench.create()
    bench.step(61)
    assert bench.status(key) is Status.EXPIRED
    bench.answer(key, Status.ERROR)
    bench.step()
    assert bench.status(key) is Status.ERROR
    assert bench.ledger.counts["late"] == 1


def test_a_question_is_asked_again_with_a_growing_distance(bench):
    (key,) = bench.create()
    for seconds, times in ((4.6, 1), (0.4, 2), (9.6, 2), (0.4, 3), (19.6, 3), (0.4, 4)):
        bench.step(seconds)
        assert bench.wire.published == [key] * times


def test_nothing_is_asked_and_nothing_expires_while_the_broker_is_away(bench):
    (asked,) = bench.create()
    bench.subscribe(False)
    (unasked,) = bench.create()
    for _ in range(100):
        bench.step(60)
    assert bench.wire.published == [asked]
    assert bench.status(asked) is bench.status(unasked) is Status.PENDING
    bench.subscribe()
    assert sorted(bench.wire.published) == sorted([asked, asked, unasked])
    bench.step(59)
    assert bench.status(asked) is bench.status(unasked) is Status.PENDING


def test_a_broker_that_refuses_is_probed_with_one_question_and_nothing_expires(bench):
    keys = bench.create(3)
    bench.ledger.refused = True
    for _ in range(100):
        bench.step(5)
    assert len(bench.wire.published) == 3 + 100
    bench.ledger.refused = False
    bench.ledger.rearm()
    bench.step()
    assert {bench.status(key) for key in keys} == {Status.PENDING}
    bench.step(2)
    assert {*bench.wire.published[-3:]} == {*keys}


def test_only_a_window_of_questions_is_open_and_it_moves_on(bench):
    keys = bench.store(models.WINDOW + 300)
    assert len(bench.wire.published) == models.WINDOW
    for key in bench.wire.published[:400]:
        bench.answer(key)
    bench.step(0.3)
    bench.step(0.3)
    assert sorted(bench.wire.published) == sorted(keys)


def test_a_backlog_is_asked_in_bounded_batches(bench):
    bench.subscribe(False)
    bench.store(2 * models.CLAIM)
    bench.ledger.subscribed = True
    sizes, before = [], 0
    for _ in range(3):
        bench.step(0.3)
        sizes.append(len(bench.wire.published) - before)
        before = len(bench.wire.published)
    assert sizes == [models.CLAIM, models.CLAIM, 0]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_step_of_the_wall_clock_between_two_runs_loses_nothing(bench, hours):
    asked, unasked = bench.create(), None
    bench.subscribe(False)
    unasked = bench.create()
    bench.clock.advance(hours * 3600)
    bench.wire.published.clear()
    bench.restart()
    assert sorted(bench.wire.published) == sorted(asked + unasked)
    bench.step(59)
    assert {bench.status(key) for key in asked + unasked} == {Status.PENDING}
    bench.step(2)
    assert {bench.status(key) for key in asked + unasked} == {Status.EXPIRED}


def test_the_clock_of_the_ledger_ignores_steps_of_the_wall_clock():
    wall, monotonic = [1_800_000_000 * 10**9], [5]
    clock = ledger_clock(lambda: wall[0], lambda: monotonic[0])
    assert clock() == 1_800_000_000 * SECOND
    wall[0] -= 3600 * 10**9
    monotonic[0] += 2 * 10**9
    assert clock() == 1_800_000_002 * SECOND


def test_a_waiter_is_woken_by_the_commit_of_its_verdict(bench):
    (key,) = bench.create()
    waiting = bench.run(bench.ledger.waiters.wait, key, 30)
    wait_until(bench.ledger.waiters.keys, "it waits")
    assert not waiting.done()
    bench.answer(key)
    bench.step()
    assert waiting.result(5) is True
    assert not bench.ledger.waiters.keys()


def test_a_waiter_finds_the_verdict_that_another_process_stored(bench):
    (key,) = bench.create()
    waiting = bench.run(bench.ledger.waiters.wait, key, 30)
    wait_until(bench.ledger.waiters.keys, "it waits")
    bench.run(models.settle, {key: Status.ERROR}, bench.clock.now).result()
    bench.step(0.1)
    assert waiting.result(5) is True


def test_a_waiter_gives_up_when_the_process_stops(bench):
    (key,) = bench.create()
    bench.ledger._stopping = lambda: True
    waiting = bench.run(bench.ledger.waiters.wait, key, 30)
    wait_until(bench.ledger.waiters.keys, "it waits")
    bench.step(0.1)
    assert waiting.result(5) is True


def test_at_most_half_the_threads_wait(bench):
    (key,) = bench.create()
    waiting = [bench.run(bench.ledger.waiters.wait, key, 30) for _ in range(8)]
    wait_until(lambda: len(bench.ledger.waiters._events.get(key, ())) == 8, "eight wait")
    assert bench.ledger.waiters.wait(key, 30) is False
    bench.answer(key)
    bench.step()
    assert all(future.result(5) for future in waiting)


def test_a_verdict_that_is_there_already_is_not_waited_for(bench):
    (key,) = bench.create()
    bench.answer(key)
    bench.step()
    assert bench.ledger.waiters.wait(key, 30) is True


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_failed_commit_refuses_the_requests_and_asks_again_afterwards(bench):
    (key,) = bench.create()
    acknowledged = bench.answer(key)
    waiting = bench.submit(bench.ledger.create, 1, None)
    storage.proxy.obj.timeout = 0
    other = type(storage.proxy.obj)(storage.proxy.database)
    other.execute_sql("BEGIN IMMEDIATE")
    bench.step()
    with pytest.raises(Unavailable, match="nothing was stored"):
        waiting.result(1)
    assert acknowledged == [True]
    other.close()
    bench.wire.published.clear()
    bench.step(2)
    assert bench.wire.published == [key]


def test_the_thread_writes_what_is_in_the_queue_before_it_stops(bench, settings):
    ledger = Ledger()
    ledger.start(settings, Wire())
    jobs = [Creation(Order(uuid7(), 1, None)) for _ in range(500)]
    for job in jobs:
        ledger._queue.put(job)
    ledger.stop()
    assert not ledger.alive
    assert {job.result(0).status for job in jobs} == {Status.PENDING}
    with pytest.raises(Unavailable, match="stopping"):
        ledger.create(1, None)


def test_a_database_that_cannot_be_opened_yet_is_waited_for(tmp_path):
    settings = Settings(database_url=f"sqlite:///{tmp_path}/var/energy2go.db")
    (tmp_path / "var").write_text("in the way")
    storage.bind(settings.database_url)
    ledger = Ledger()
    ledger.start(settings, Wire())
    waiting = Call(models.create_station, "Teste")
    ledger._queue.put(waiting)
    assert ledger.alive
    assert not waiting.done()
    (tmp_path / "var").unlink()
    assert waiting.result(10).id == 1
    ledger.stop()


SECOND_PROCESS = """
import sys, storage, ledger, settings
class Wire:
    alive = True
    def publish(self, questions): pass
settings = settings.Settings(database_url=sys.argv[1])
storage.bind(settings.database_url)
writer = ledger.Ledger()
writer.start(settings, Wire())
print("ready", flush=True)
for _ in range(200):
    writer.create(1, None)
writer.stop()
"""


def test_two_processes_write_to_one_file(bench, settings):
    command = [sys.executable, "-c", SECOND_PROCESS, settings.database_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        ledger = Ledger()
        ledger.start(settings, Wire())
        for future in [bench.run(ledger.create, 1, None) for _ in range(200)]:
            future.result(30)
        assert other.wait(60) == 0
    ledger.stop()
    assert len(models.list_transactions(1000)) == 400
