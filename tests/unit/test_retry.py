"""POST /transactions/{id}/retry: an EXPIRED transaction is asked again, as if it were new."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from calls import UNKNOWN, assert_problem, new_station, new_transaction, send, service, settle
from kit.clock import moment
from kit.errors import NotFound
from kit.storage import execute
from postgres import BOTH
from programs import wait_until
from queries import MANY, NOW, TIMEOUTS
from schemas import NotExpired, Question, Status


@pytest.mark.parametrize("emptied", BOTH, indirect=True)
@pytest.mark.parametrize("room", [MANY, 0])
def test_only_what_is_expired_is_retried_once_with_a_new_deadline(queries, room):
    key, late = queries.create(2)
    now = NOW + 2 * TIMEOUTS.timeout
    queries.expire(now)
    (pending,) = queries.create(1, now)
    queries.settle([(late, "COMPLETED")], now)
    ids = key, key, pending, late, uuid4()
    (answer, *others), questions = queries.retry(ids, now + 1, now + 1, TIMEOUTS, room)
    assert [type(other) for other in others] == [NotExpired, NotExpired, NotExpired, NotFound]
    assert "COMPLETED" in str(others[2])
    assert answer == queries.get_transaction(key)
    assert (answer.status, answer.updated) == (Status.PENDING, moment(now + 1))
    asked = (1, moment(now + 1), moment(now + 1 + TIMEOUTS.timeout)) if room else (0, None, None)
    assert (answer.attempts, answer.asked, answer.expires) == asked
    assert questions == ([(Question(key, 1), TIMEOUTS.retry)] if room else [])
    assert len(queries.claim(now + 1, waiting=True)) == (not room)


def expire() -> None:
    execute(service().store.database, """UPDATE "transaction" SET status = 'EXPIRED', retry_at = NULL""")
    service().store.database.close()


def test_a_retry_answers_with_the_transaction_and_waits_if_asked_to(api):
    new_station(api)
    key = new_transaction(api)["id"]
    path = f"/transactions/{key}/retry"
    assert_problem(send(api, "POST", path), 409, "Not expired", key, "PENDING", "EXPIRED")
    expire()
    answer = send(api, "POST", path)
    assert (answer.status_int, answer.json["status"]) == (200, "PENDING")
    assert answer.json == api.get(f"/transactions/{key}").json
    expire()
    with ThreadPoolExecutor() as pool:
        held = pool.submit(send, api, "POST", path + "/", Prefer="wait=30")
        wait_until(lambda: service().changes.clients["waits"], "it waits")
        settle(key, "ERROR")
        answer = held.result(60)
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("ERROR", "wait=30")


def test_what_does_not_exist_cannot_be_retried(api):
    assert_problem(send(api, "POST", f"/transactions/{UNKNOWN}/retry"), 404, "Not found", UNKNOWN)
    assert send(api, "POST", "/transactions/x/retry").status_int == 422
    assert send(api, "GET", f"/transactions/{UNKNOWN}/retry").status_int == 405
