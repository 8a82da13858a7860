"""The single writer: called step by step with the test's own clock, and run as a thread."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest

import ledger as ledgers
import models
from batch import change, create
from calls import looping
from kit import sql, storage
from kit.clock import SECOND, Clock
from kit.errors import NotFound, Refusal, Unavailable
from kit.settings import Settings
from ledger import Draft, Job
from programs import wait_until
from schemas import Status
from stepped import ledger

only_postgresql = pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)
only_sqlite = pytest.mark.parametrize("emptied", ["sqlite"], indirect=True)


@only_sqlite
def test_one_step_answers_all_waiting_requests(bench):
    keys = bench.create(10)
    assert [bench.status(key) for key in keys] == [Status.PENDING] * 10
    assert sorted(bench.publisher.published) == sorted(keys)


def test_a_poisoned_job_in_a_full_batch_hurts_no_other(bench):
    drafts = [Draft(1) for _ in range(ledgers.BATCH - 1)]
    drafts.insert(250, Draft(object()))
    jobs = [bench.put(Job(create, draft)) for draft in drafts]
    bad_verdict, verdict = bench.answer(object()), bench.answer(drafts[0].id)
    bench.step()
    bench.step()
    poisoned = jobs.pop(250)
    assert not isinstance(poisoned.result, Refusal | None)
    assert [job.result.id for job in jobs] == [job.item.id for job in jobs]
    assert len(bench.list()) == ledgers.BATCH - 1
    assert bad_verdict == verdict == [True]


@only_sqlite
def test_a_refused_change_hurts_no_other(bench):
    refused = bench.submit(bench.ledger.change, models.delete_station, 77)
    made = bench.submit(bench.ledger.change, models.create_station, "another")
    bench.step()
    assert made.result(60).id == 2
    with pytest.raises(NotFound):
        refused.result(60)


@only_sqlite
def test_a_request_withdraws_after_its_patience_and_is_never_written(bench, monkeypatch):
    monkeypatch.setattr(ledgers, "JOB_TIMEOUT", 0.2)
    waiting = bench.submit(bench.ledger.create, Draft(1))
    with pytest.raises(Unavailable, match="nothing was stored"):
        waiting.result(60)
    bench.step()
    assert bench.list() == []


@only_sqlite
def test_a_job_that_was_taken_is_waited_for_and_then_its_outcome_is_unknown(bench, monkeypatch):
    taken, release = threading.Event(), threading.Event()

    def slow(database) -> str:
        taken.set()
        release.wait(60)
        return "done"

    job = Job(change, slow)
    job.future = bench.loop.create_future()
    bench.put(job)
    stepping = bench.run(bench.step)
    assert taken.wait(60)
    assert not job.take()
    monkeypatch.setattr(ledgers, "JOB_TIMEOUT", 0)
    bench.loop.call_soon_threadsafe(bench.ledger._withdraw, job.future, job)
    wait_until(job.future.done, "it has given up")
    assert str(job.future.exception()) == ledgers.UNKNOWN
    release.set()
    stepping.result(60)
    assert job.result == "done"


@only_sqlite
def test_a_full_queue_refuses_requests(bench, monkeypatch):
    monkeypatch.setattr(ledgers, "QUEUE", 1)
    first = bench.submit(bench.ledger.create, Draft(1))
    with pytest.raises(Unavailable, match="Too many"):
        bench.run(bench.ledger.create, Draft(1)).result(60)
    bench.step()
    assert bench.status(first.result(60).id) is Status.PENDING


@only_sqlite
def test_a_verdict_and_the_timeout_in_one_step_settle(bench):
    (key,) = bench.create()
    bench.answer(key)
    bench.step(61)
    assert bench.status(key) is Status.COMPLETED


@only_sqlite
def test_only_a_window_of_questions_is_open_and_it_moves_on(bench):
    keys = bench.store(models.WINDOW + 300)
    assert len(bench.publisher.published) == models.WINDOW
    for key in bench.publisher.published[:400]:
        bench.answer(key)
    bench.step(0.3)
    bench.step(0.3)
    assert sorted(bench.publisher.published) == sorted(keys)


@only_sqlite
def test_a_backlog_is_asked_in_bounded_batches(bench):
    bench.subscribe(False)
    bench.store(2 * models.CLAIM)
    bench.publisher.subscribed = True
    sizes, before = [], 0
    for _ in range(3):
        bench.step(0.3)
        sizes.append(len(bench.publisher.published) - before)
        before = len(bench.publisher.published)
    assert sizes == [models.CLAIM, models.CLAIM, 0]


def test_the_steady_clock_ignores_steps_of_the_wall_clock(monkeypatch):
    wall, monotonic = [1_800_000_000 * 10**9], [5]
    monkeypatch.setattr(time, "time_ns", lambda: wall[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: monotonic[0])
    clock = Clock()
    assert clock.steady() == clock.wall() == 1_800_000_000 * SECOND
    wall[0] -= 3600 * 10**9
    monotonic[0] += 2 * 10**9
    assert clock.steady() == 1_800_000_002 * SECOND
    assert clock.wall() == 1_799_996_400 * SECOND


@pytest.fixture
def hold(bench):
    """Takes a lock that the ledger needs, in a session of its own; returns how to give it back."""
    other = storage.connect(bench.settings.database_url, 1)

    def take(statement: str):
        other.connect()
        other.execute_sql(statement)
        return other.close_all

    yield take
    other.close_all()


def test_a_failed_write_refuses_requests_keeps_verdicts_and_asks_again_afterwards(bench, hold, monkeypatch):
    monkeypatch.setattr(sql, "BEGIN", sql.BEGIN.replace("5.0s", "0.2s"))
    asked, answered = bench.create(2)
    acknowledged = bench.answer(answered)
    waiting = bench.submit(bench.ledger.create, Draft(1))
    if storage.is_postgresql(bench.database):
        release = hold(f"SELECT pg_advisory_lock({sql.WRITERS})")
    else:
        bench.database.timeout = 0
        release = hold("BEGIN IMMEDIATE")
    bench.step()
    with pytest.raises(Unavailable, match="nothing was stored"):
        waiting.result(60)
    bench.step(70)  # longer than any deadline
    assert acknowledged == []
    with pytest.raises(Unavailable, match="nothing was stored: "):
        bench.run(bench.ledger.create, Draft(1)).result(60)
    release()
    bench.publisher.published.clear()
    bench.step(0.1)
    assert not bench.ledger.store.problem
    assert acknowledged == [True]
    assert bench.status(answered) is Status.COMPLETED
    bench.step(1)
    assert bench.publisher.published == [asked]


LOCKED = "SELECT 1 FROM \"transaction\" WHERE id = '{}' FOR UPDATE"


@pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)
def test_a_row_that_another_session_has_locked_stops_no_other(bench, hold):
    held, free = bench.create(2)
    release = hold("BEGIN; " + LOCKED.format(held))
    late, settled = bench.answer(held), bench.answer(free)
    bench.step()
    assert (late, settled) == ([], [True])
    bench.step(61)
    assert bench.status(held) is Status.PENDING  # it cannot expire now
    assert len(bench.create(32)) == 32
    release()
    bench.step(1)
    assert late == [True]
    assert bench.status(held) is Status.COMPLETED


@pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)
def test_a_job_that_needs_a_locked_row_is_refused_alone(bench, hold):
    (key,) = bench.create()
    bench.step(61)
    models.create_station(bench.database, "another")
    release = hold(f"BEGIN; SELECT 1 FROM station WHERE id = 2 FOR UPDATE; {LOCKED.format(key)}")
    refused = [
        bench.submit(bench.ledger.create, Draft(2)),
        bench.submit(bench.ledger.retry, key),
        bench.submit(bench.ledger.change, models.change_station, 2, "third"),
    ]
    others = [bench.submit(bench.ledger.create, Draft(1)) for _ in range(30)]
    bench.step()
    for one in refused:
        with pytest.raises(Unavailable, match="locked by another database session; nothing was stored"):
            one.result(60)
    assert {one.result(60).status for one in others} == {Status.PENDING}
    assert not bench.ledger.problem
    release()
    assert bench.submit(bench.ledger.retry, key)


def test_two_processes_share_one_window(bench, monkeypatch):
    monkeypatch.setattr(models, "WINDOW", 10)
    other = ledger(bench.settings, bench.loop, bench.publisher, bench.clock)
    other.step(0)
    for one in (other, bench.ledger):
        for _ in range(8):
            one.queue.put(Job(create, Draft(1)))
        one.step(0)
    assert len(bench.publisher.published) == 10
    assert models.room(bench.database) == 0
    other.store.close()


@only_sqlite
def test_a_round_that_fails_three_times_is_a_problem(bench, monkeypatch):
    monkeypatch.setattr(models, "expire", lambda *_: 1 / 0)
    for _ in range(3):
        assert not bench.ledger.stuck
        bench.step(1)
    assert "failed three times" in bench.ledger.stuck
    monkeypatch.undo()
    bench.step(1)
    assert not bench.ledger.stuck


@contextmanager
def started(settings: Settings):
    """A ledger with its thread; afterwards its connections are closed."""
    with looping() as loop, ledger(settings, loop) as running:
        running.call = lambda function, *values: asyncio.run_coroutine_threadsafe(
            function(*values), loop
        ).result(60)
        yield running
    running.store.close()


@only_sqlite
def test_the_thread_writes_what_is_in_the_queue_before_it_stops(bench):
    with started(bench.settings) as running:
        jobs = [Job(create, Draft(1)) for _ in range(500)]
        for job in jobs:
            running.queue.put(job)
    assert not running.alive
    assert {job.result.status for job in jobs} == {Status.PENDING}
    with pytest.raises(Unavailable, match="stopping"):
        asyncio.run(running.create(Draft(1)))
    running.store.close()


def test_a_database_that_cannot_be_opened_yet_is_waited_for(tmp_path):
    settings = Settings(database_url=f"sqlite:///{tmp_path}/later/energy2go.db")
    with started(settings) as running:
        wait_until(lambda: "does not exist" in running.store.problem, "it says what is wrong")
        with pytest.raises(Unavailable, match=r"nothing was stored.*does not exist"):
            running.call(running.change, models.create_station, "Teste")
        (tmp_path / "later").mkdir()
        wait_until(lambda: not running.store.problem, "it is open")
        assert running.call(running.change, models.create_station, "Teste").id == 1
