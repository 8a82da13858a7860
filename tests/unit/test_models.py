"""The rules of a transaction's life that no simulated world looks at."""

from uuid import RFC_4122, uuid4

import pytest
from peewee import IntegrityError, OperationalError

from kit import storage
from kit.clock import SECOND, moment
from kit.errors import NotFound
from models import CLAIM
from postgres import BOTH
from queries import MANY, NOW, TIMEOUTS
from schemas import HasTransactions, NotExpired, Question, Status

both = pytest.mark.parametrize("emptied", BOTH, indirect=True)


def test_sqlite_keeps_what_it_stored_and_lets_a_transaction_that_reads_first_write_later(database, queries):
    assert (database.journal_mode, database.synchronous) == ("wal", 2)
    assert (database.foreign_keys, database.timeout) == (1, 5)
    # A deferred one would fail at once, "database is locked", if another connection had written in between.
    with database.atomic():
        queries.list_stations(1, 0)
        other = storage.connect(f"sqlite:///{storage.path(database)}", 1)
        other.execute_sql("PRAGMA busy_timeout = 0")
        with pytest.raises(OperationalError, match="locked"):
            other.execute_sql("BEGIN IMMEDIATE")
        other.close_all()
        assert queries.create_station("another").id == 2


@both
def test_a_transaction_says_how_often_and_when_it_was_asked_and_when_it_expires(queries):
    (key,) = queries.create(room=0)
    waiting = queries.get_transaction(key)
    assert (waiting.attempts, waiting.asked, waiting.expires) == (0, None, None)
    queries.claim(NOW, waiting=True)
    queries.claim(NOW + TIMEOUTS.retry)
    asked, deadline = moment(NOW + TIMEOUTS.retry), moment(NOW + TIMEOUTS.timeout)
    assert queries.expire(NOW + TIMEOUTS.timeout - 1) == []
    for change in (lambda: None, lambda: queries.expire(NOW + TIMEOUTS.timeout)):
        change()
        found = queries.get_transaction(key)
        assert (found.attempts, found.asked, found.expires) == (2, asked, deadline)
    assert found.status is Status.EXPIRED
    assert queries.settle([(key, "ERROR")], NOW + TIMEOUTS.timeout) == [("late", 55 * SECOND)]
    settled = queries.get_transaction(key)
    assert (settled.attempts, settled.asked, settled.expires) == (2, asked, None)


@both
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


def test_asking_again_doubles_the_backoff_up_to_30_seconds(queries):
    queries.create()
    now, backoffs = NOW + TIMEOUTS.retry, []
    for _ in range(5):
        assert queries.claim(now - 1) == []
        ((_, backoff),) = queries.claim(now)
        backoffs.append(backoff // SECOND)
        now += backoff
    assert backoffs == [10, 20, 30, 30, 30]


@pytest.mark.parametrize("restart", [False, True])
def test_asking_again_and_again_asks_once_a_second(queries, restart):
    (key,) = queries.create()
    for step in range(10):
        queries.ask_again(NOW + step, restart)
        assert queries.claim(NOW + step, waiting=restart) == []
    assert len(queries.claim(NOW + SECOND, waiting=restart)) == 1
    assert queries.get_transaction(key).attempts == 2 - restart


@pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)
def test_a_claim_is_no_larger_when_the_planner_knows_nothing_of_the_table(database, queries):
    storage.execute(database, "ANALYZE")
    queries.create(2000, room=0)
    assert len(queries.claim(NOW, CLAIM, waiting=True)) == CLAIM


@both
def test_the_database_itself_refuses_a_transaction_without_a_station(database, queries):
    row = f"""INSERT INTO "transaction" (id, station_id, status, created, updated, attempts)
        VALUES ('{uuid4().hex}', 9, 'PENDING', 0, 0, 0)"""
    queries.create()
    for statement in (row, "DELETE FROM station"):
        with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
            database.execute_sql(statement)
    with pytest.raises(HasTransactions):
        queries.delete_station(1)


def test_ids_are_ordered_by_time_and_within_a_batch(queries):
    keys = queries.create(1000) + [queries.create(1, NOW + later)[0] for later in (1, 1000, SECOND)]
    assert keys == sorted(keys)
    assert {(key.version, key.variant) for key in keys} == {(7, RFC_4122)}
    assert {key.int >> 80 for key in keys[:1000]} == {NOW // 1000}
