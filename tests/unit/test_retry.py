"""POST /transactions/{id}/retry: an EXPIRED transaction is asked again, as if it were new."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import models
from batch import retry
from calls import UNKNOWN, assert_problem, new_station, new_transaction, send, service, settle
from kit.clock import SECOND, moment
from kit.errors import NotFound
from kit.storage import execute
from ledger import Job
from programs import wait_until
from schemas import NotExpired, Status


def expired(bench, count: int = 1) -> list:
    keys = bench.create(count)
    bench.step(61)
    assert {bench.status(key) for key in keys} == {Status.EXPIRED}
    bench.publisher.published.clear()
    return keys


def retried(bench, *keys) -> list:
    """The results of retries in one batch."""
    jobs = [bench.put(Job(retry, key)) for key in keys]
    bench.step()
    return [job.result for job in jobs]


def test_a_retry_asks_at_once_with_a_new_deadline(bench):
    (key,) = expired(bench)
    (answer,) = retried(bench, key)
    assert bench.publisher.published == [key]
    assert answer == models.get_transaction(bench.database, key)
    now = bench.clock.now
    assert (answer.status, answer.attempts, answer.asked) == (Status.PENDING, 1, moment(now))
    assert answer.expires == moment(now + 60 * SECOND)
    assert answer.updated > answer.created
    bench.step(5)
    assert bench.publisher.published == [key, key]
    bench.step(54)
    assert bench.status(key) is Status.PENDING
    bench.step(2)
    assert bench.status(key) is Status.EXPIRED
    assert isinstance(retried(bench, key)[0], models.Transaction)


def test_only_what_is_expired_is_retried_and_once(bench):
    key, late = expired(bench, 2)
    (pending,) = bench.create()
    bench.answer(late)  # in the same batch, and so before it
    results = retried(bench, key, key, pending, late, uuid4())
    assert results[0].status is Status.PENDING
    assert [type(result) for result in results[1:]] == [NotExpired, NotExpired, NotExpired, NotFound]
    assert "COMPLETED" in str(results[3])
    assert bench.publisher.published.count(key) == 1
    assert bench.ledger.counts[Status.PENDING] == 4  # three were created


def test_a_retry_waits_for_room_in_the_window_and_for_the_broker(bench, monkeypatch):
    keys = expired(bench, 3)
    monkeypatch.setattr(models, "WINDOW", 2)
    retried(bench, *keys)
    assert sorted(bench.publisher.published) == keys[:2]
    waiting = models.get_transaction(bench.database, keys[2])
    assert (waiting.status, waiting.attempts, waiting.asked, waiting.expires) == (
        Status.PENDING,
        0,
        None,
        None,
    )
    bench.answer(keys[0])
    bench.step(0.3)
    assert sorted(bench.publisher.published) == keys


# Over HTTP


def expire(key: str) -> None:
    execute(service().store.database, """UPDATE "transaction" SET status = 'EXPIRED', retry_at = NULL""")
    service().store.database.close()


def test_a_retry_answers_with_the_transaction_and_waits_if_asked_to(api):
    new_station(api)
    key = new_transaction(api)["id"]
    path = f"/transactions/{key}/retry"
    assert_problem(send(api, "POST", path), 409, "Not expired", key, "PENDING", "EXPIRED")
    expire(key)
    answer = send(api, "POST", path)
    assert (answer.status_int, answer.json["status"]) == (200, "PENDING")
    assert answer.json == api.get(f"/transactions/{key}").json
    expire(key)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(send, api, "POST", path + "/", Prefer="wait=30")
        wait_until(lambda: service().changes.clients["waits"], "it waits")
        settle(key, "ERROR")
        answer = held.result(60)
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("ERROR", "wait=30")
    assert_problem(send(api, "POST", path), 409, "Not expired", "ERROR")


def test_what_does_not_exist_cannot_be_retried(api):
    assert_problem(send(api, "POST", f"/transactions/{UNKNOWN}/retry"), 404, "Not found", UNKNOWN)
    assert send(api, "POST", "/transactions/x/retry").status_int == 422
    assert send(api, "GET", f"/transactions/{UNKNOWN}/retry").status_int == 405
