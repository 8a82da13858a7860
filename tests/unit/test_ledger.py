"""The single writer: called step by step with the test's own clock, and run as a thread."""

import pytest

import ledger as ledgers
import models
from batch import create
from kit import storage
from kit.errors import Refusal, Unavailable
from ledger import Draft
from postgres import BOTH
from schemas import Status

both = pytest.mark.parametrize("emptied", BOTH, indirect=True)


@both
def test_a_poisoned_job_in_a_full_batch_hurts_no_other(bench):
    drafts = [Draft(1) for _ in range(ledgers.BATCH - 1)]
    drafts.insert(250, Draft(object()))
    jobs = [bench.put(create, draft) for draft in drafts]
    bad_verdict, verdict = bench.answer(object()), bench.answer(drafts[0].id)
    bench.step()
    bench.step()
    poisoned = jobs.pop(250)
    assert not isinstance(poisoned.result, Refusal | None)
    assert [job.result.id for job in jobs] == [job.item.id for job in jobs]
    assert len(bench.list()) == ledgers.BATCH - 1
    assert bad_verdict == verdict == [True]


def test_a_full_queue_refuses_requests(bench, monkeypatch):
    monkeypatch.setattr(ledgers, "QUEUE", 1)
    first = bench.submit(bench.ledger.create(Draft(1)))
    with pytest.raises(Unavailable, match="Too many"):
        bench.result(bench.submit(bench.ledger.create(Draft(1))))
    bench.step()
    assert bench.result(first).status is Status.PENDING


def test_a_verdict_and_the_timeout_in_one_step_settle(bench):
    (key,) = bench.create()
    bench.answer(key)
    bench.step(61)
    assert bench.status(key) is Status.COMPLETED


@pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)
def test_rows_that_another_session_has_locked_stop_no_other(bench, emptied):
    models.create_station(bench.database, "another")
    (expired,) = bench.create()
    bench.step(61)
    held, free = bench.create(2)
    other = storage.connect(emptied[1], 1)
    other.connect()
    rows = f"""SELECT 1 FROM "transaction" WHERE id IN ('{held}', '{expired}') FOR UPDATE"""
    other.execute_sql(f"BEGIN; SELECT 1 FROM station WHERE id = 2 FOR UPDATE; {rows}")
    late, settled = bench.answer(held), bench.answer(free)
    change = bench.ledger.change(models.change_station, 2, "third")
    refused = [bench.ledger.create(Draft(2)), bench.ledger.retry(expired), change]
    refused = [bench.submit(one) for one in refused]
    others = [bench.submit(bench.ledger.create(Draft(1))) for _ in range(30)]
    bench.step()
    for one in refused:
        with pytest.raises(Unavailable, match="locked by another database session; nothing was stored"):
            bench.result(one)
    assert {bench.result(one).status for one in others} == {Status.PENDING}
    assert (late, settled) == ([], [True])
    bench.step(61)
    assert bench.status(held) is Status.PENDING  # it cannot expire now
    assert not bench.ledger.problem
    other.close_all()
    again = bench.submit(bench.ledger.retry(expired))
    bench.step(1)
    assert bench.result(again).status is Status.PENDING
    assert late == [True]
    assert bench.status(held) is Status.COMPLETED
