"""The rules of a transaction's life, and the plan of every query."""

import time
from uuid import UUID

import pytest
from peewee import IntegrityError, OperationalError
from uuid_utils.compat import uuid7

import models
import storage
from models import SECOND, Clocks, Conflict, NotFound, Order, Station, Transaction, Unprocessable
from schemas import Status

CLOCKS = Clocks(retry=5 * SECOND, timeout=60 * SECOND)
NOW = int(time.time() * SECOND)
MANY = 10_000
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def database(database_url):
    storage.bind(database_url)
    storage.migrate()
    models.create_station("Teste")
    yield storage.proxy
    storage.close()


def create(count=1, now=NOW, room=MANY) -> list[UUID]:
    orders = [Order(uuid7(), 1, None) for _ in range(count)]
    models.create_transactions(orders, now, CLOCKS, room)
    return [order.transaction_id for order in orders]


def status(key: UUID) -> Status:
    return models.get_transaction(key).status


@only_sqlite
def test_the_database_keeps_what_it_said_it_stored(database):
    assert database.journal_mode == "wal"
    assert database.synchronous == 2
    assert database.foreign_keys == 1
    assert database.timeout == 5


@only_sqlite
def test_a_transaction_that_reads_first_may_write_later(database):
    # A deferred transaction fails at once ("database is locked") if another connection wrote in between.
    with storage.writing():
        models.list_stations(1, None)
        other = type(database.obj)(database.database, timeout=0)
        with pytest.raises(OperationalError, match="locked"):
            other.execute_sql("BEGIN IMMEDIATE")
        other.close()
        assert models.create_station("another").id == 2


def test_a_transaction_is_pending_until_its_verdict():
    key, other = create(2)
    assert status(key) is Status.PENDING
    assert models.settle({key: Status.COMPLETED, other: Status.ERROR}, NOW + 5) == {
        key: (False, 5),
        other: (False, 5),
    }
    assert status(key) is Status.COMPLETED
    assert status(other) is Status.ERROR
    assert models.get_transaction(key).updated == models.moment(NOW + 5)


def test_the_first_verdict_wins():
    (key,) = create()
    models.settle({key: Status.ERROR}, NOW)
    assert models.settle({key: Status.COMPLETED}, NOW) == {}
    assert status(key) is Status.ERROR


def test_a_verdict_for_an_unknown_transaction_changes_nothing():
    assert models.settle({uuid7(): Status.COMPLETED}, NOW) == {}


def test_an_unanswered_question_expires_and_a_late_verdict_settles_it():
    (key,) = create()
    assert models.expire(NOW + CLOCKS.timeout - 1) == []
    assert models.expire(NOW + CLOCKS.timeout) == [key]
    assert status(key) is Status.EXPIRED
    assert models.settle({key: Status.COMPLETED}, NOW + CLOCKS.timeout + 1) == {
        key: (True, CLOCKS.timeout + 1)
    }
    assert status(key) is Status.COMPLETED


def test_what_was_never_asked_never_expires():
    (key,) = create(room=0)
    assert models.expire(NOW + 1000 * CLOCKS.timeout) == []
    assert [question.transaction_id for question in models.claim(NOW, CLOCKS, MANY, waiting=True)] == [key]
    assert models.expire(NOW + CLOCKS.timeout) == [key]


def test_what_is_settled_is_asked_no_more():
    (key,) = create()
    models.settle({key: Status.COMPLETED}, NOW)
    later = NOW + 10 * CLOCKS.timeout
    models.rearm(later)
    assert models.claim(later, CLOCKS, MANY) + models.claim(later, CLOCKS, MANY, waiting=True) == []
    assert models.expire(later) == []


def test_asking_again_doubles_the_backoff_up_to_30_seconds():
    create()
    now, backoffs = NOW + CLOCKS.retry, []
    for _ in range(5):
        assert models.claim(now - 1, CLOCKS, MANY) == []
        (question,) = models.claim(now, CLOCKS, MANY)
        backoffs.append(question.backoff // SECOND)
        now += question.backoff
    assert backoffs == [10, 20, 30, 30, 30]


def test_asking_again_does_not_move_the_time_of_expiry():
    (key,) = create()
    models.claim(NOW + CLOCKS.retry, CLOCKS, MANY)
    assert models.expire(NOW + CLOCKS.timeout) == [key]


def test_a_claim_takes_a_question_once_and_the_longest_due_first():
    keys = [key for step in range(4) for key in create(1, NOW + step, room=0)]
    first = models.claim(NOW + 9, CLOCKS, 3, waiting=True)
    second = models.claim(NOW + 9, CLOCKS, 3, waiting=True)
    assert {question.transaction_id for question in first} == set(keys[:3])
    assert [question.transaction_id for question in second] == keys[3:]


def test_while_the_broker_refuses_neither_backoff_nor_clock_goes_on():
    (key,) = create()
    now = NOW
    for _ in range(20):
        now += CLOCKS.retry
        models.rearm(now)
        assert models.claim(now, CLOCKS, 1) == []
        (question,) = models.claim(now, CLOCKS, 1, waiting=True)
        assert question == (key, 1, CLOCKS.retry)
    assert models.expire(now + CLOCKS.timeout - 1) == []


def test_rearming_stops_the_clock_until_the_question_is_asked_again():
    (key,) = create()
    later = NOW + CLOCKS.timeout - 1
    models.rearm(later)
    assert models.expire(later + CLOCKS.timeout) == []
    assert [question.transaction_id for question in models.claim(later, CLOCKS, MANY, waiting=True)] == [key]
    assert models.expire(later + CLOCKS.timeout - 1) == []
    assert models.expire(later + CLOCKS.timeout) == [key]


def test_rearming_again_and_again_asks_once_a_second():
    create()
    for step in range(10):
        models.rearm(NOW + step)
        assert models.claim(NOW + step, CLOCKS, MANY, waiting=True) == []
    assert len(models.claim(NOW + SECOND, CLOCKS, MANY, waiting=True)) == 1


@pytest.mark.parametrize("step", [-3600 * SECOND, 3600 * SECOND])
@pytest.mark.parametrize("room", [0, MANY])
def test_after_a_restart_with_another_wall_clock_everything_is_asked(step, room):
    (key,) = create(room=room)
    now = NOW + step
    models.rearm(now)
    assert [question.transaction_id for question in models.claim(now, CLOCKS, MANY, waiting=True)] == [key]
    assert models.expire(now + CLOCKS.timeout - 1) == []


def test_the_window_counts_the_questions_whose_clock_runs():
    create(30, room=20)
    assert models.room() == models.WINDOW - 20
    models.claim(NOW, CLOCKS, 5, waiting=True)
    assert models.room() == models.WINDOW - 25
    models.settle({key: Status.ERROR for (key,) in Transaction.select(Transaction.id).tuples()}, NOW)
    assert models.room() == models.WINDOW


def test_a_batch_answers_each_order_for_itself():
    orders = [
        Order(uuid7(), 1, None),
        Order(uuid7(), 77, None),
        Order(uuid7(), 1, "key"),
        Order(uuid7(), 1, "key"),
    ]
    (good, unknown, first, again), questions = models.create_transactions(orders, NOW, CLOCKS, MANY)
    assert good.id == orders[0].transaction_id
    assert isinstance(unknown, Unprocessable)
    assert "77" in str(unknown)
    assert first == again
    assert first.id == orders[2].transaction_id
    assert [question.transaction_id for question in questions] == [good.id, first.id]
    assert Transaction.select().count() == 2


def test_a_key_of_an_earlier_batch_gets_the_first_answer_again():
    models.create_station("another")
    (first,), _ = models.create_transactions([Order(uuid7(), 1, "key")], NOW, CLOCKS, MANY)
    models.settle({first.id: Status.COMPLETED}, NOW + 1)
    orders = [Order(uuid7(), 1, "key"), Order(uuid7(), 2, "key")]
    (again, other), questions = models.create_transactions(orders, NOW + 2, CLOCKS, MANY)
    assert again == first
    assert isinstance(other, Unprocessable)
    assert questions == []


def test_the_database_itself_refuses_a_transaction_without_a_station():
    row = {"id": uuid7(), "station": 9, "status": "PENDING", "created": NOW, "updated": NOW, "attempts": 0}
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        Transaction.insert(row).execute()


def test_the_database_itself_refuses_to_delete_a_station_with_transactions():
    create()
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        Station.delete().execute()
    with pytest.raises(Conflict):
        models.delete_station(1)


def test_the_id_of_a_deleted_station_is_not_given_again():
    models.delete_station(1)
    assert models.create_station("next").id == 2
    with pytest.raises(NotFound):
        models.get_station(1)


def test_ids_are_ordered_by_time():
    keys = create(1000)
    assert keys == sorted(keys)
    assert {key.version for key in keys} == {7}


def test_a_page_goes_on_where_the_last_one_ended():
    keys = create(7)
    first = models.list_transactions(3)
    rest = models.list_transactions(10, first[-1].id, Status.PENDING, 1)
    assert [transaction.id for transaction in first + rest] == keys[::-1]


def every_query() -> None:
    """Call every function in `models` that reads or writes."""
    (key,) = create()
    storage.check()
    models.get_station(1)
    models.list_stations(5, 1)
    models.change_station(1, "other")
    models.create_station("another")
    models.delete_station(2)
    models.get_transaction(key)
    for after in (None, key):
        for wanted in (None, Status.ERROR):
            for station in (None, 1):
                models.list_transactions(5, after, wanted, station)
    models.statuses([key])
    models.create_transactions([Order(uuid7(), 1, "key")], NOW, CLOCKS, MANY)
    models.room()
    models.oldest_pending()
    for waiting in (False, True):
        models.claim(NOW, CLOCKS, 5, waiting)
    models.rearm(NOW)
    models.expire(NOW)
    models.settle({key: Status.ERROR}, NOW)


@pytest.fixture
def planned(caplog) -> list[tuple]:
    """Every statement that searches for rows, with its values."""
    with caplog.at_level("DEBUG", "peewee"):
        every_query()
    statements = [record.msg for record in caplog.records if record.name == "peewee"]
    planned = [
        (sql, values)
        for sql, values in statements
        if sql.split()[0] in ("SELECT", "UPDATE", "DELETE", "WITH")
    ]
    assert len(planned) > 25
    return planned


@only_postgresql
def test_no_query_needs_to_scan_a_table_in_postgresql(database, planned):
    # PostgreSQL scans a table this small unless we forbid it. Then every query must have an index.
    database.execute_sql("SET enable_seqscan = off")
    for sql, values in planned:
        plan = "\n".join(step for (step,) in database.execute_sql(f"EXPLAIN {sql}", values).fetchall())
        assert "Seq Scan" not in plan, (plan, sql)


@only_sqlite
def test_no_query_scans_a_table_in_sqlite(database, planned):
    for sql, values in planned:
        for *_, step in database.execute_sql(f"EXPLAIN QUERY PLAN {sql}", values).fetchall():
            # A page in primary key order is a scan that stops early; `due` and `opened` are limited.
            allowed = "SCAN t1 USING INDEX sqlite_autoindex_transaction_1" in step and "ORDER BY" in sql
            allowed = allowed or step in ("SCAN due", "SCAN opened")
            assert "SCAN" not in step or allowed or "CONSTANT" in step, (step, sql)


def test_an_id_that_was_never_stored_is_not_found():
    with pytest.raises(NotFound):
        models.get_transaction(uuid7())
    assert models.statuses([uuid7()]) == {}
