"""The rules of a transaction's life."""

from uuid import RFC_4122, uuid4

import pytest
from peewee import IntegrityError, OperationalError

import models
from kit import storage
from kit.clock import SECOND, moment
from models import Draft
from queries import MANY, NOW, TIMEOUTS
from schemas import HasTransactions, KeyUsed, NoStation, Status, Verdict

only_sqlite = pytest.mark.parametrize("emptied", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)


@only_sqlite
def test_the_database_keeps_what_it_said_it_stored(database):
    assert database.journal_mode == "wal"
    assert database.synchronous == 2
    assert database.foreign_keys == 1
    assert database.timeout == 5


@only_sqlite
def test_a_transaction_that_reads_first_may_write_later(database, queries):
    # A deferred one would fail at once, "database is locked", if another connection had written in between.
    with database.atomic():
        queries.list_stations(1, 0)
        other = storage.connect(f"sqlite:///{storage.path(database)}", 1)
        other.execute_sql("PRAGMA busy_timeout = 0")
        with pytest.raises(OperationalError, match="locked"):
            other.execute_sql("BEGIN IMMEDIATE")
        other.close_all()
        assert queries.create_station("another").id == 2


def test_a_transaction_is_pending_until_its_verdict(queries):
    key, other = queries.create(2)
    assert queries.status(key) is Status.PENDING
    assert queries.settle({key: "COMPLETED", other: "ERROR"}, NOW + 5) == [("settled", 5)] * 2
    assert queries.status(key) is Status.COMPLETED
    assert queries.status(other) is Status.ERROR
    assert queries.get_transaction(key).updated == moment(NOW + 5)


def test_a_transaction_says_how_often_and_when_it_was_asked_and_when_it_expires(queries):
    (key,) = queries.create(room=0)
    waiting = queries.get_transaction(key)
    assert (waiting.attempts, waiting.asked, waiting.expires) == (0, None, None)
    queries.claim(NOW, waiting=True)
    queries.claim(NOW + TIMEOUTS.retry)
    asked, deadline = moment(NOW + TIMEOUTS.retry), moment(NOW + TIMEOUTS.timeout)
    for change in (lambda: None, lambda: queries.expire(NOW + TIMEOUTS.timeout)):
        change()
        found = queries.get_transaction(key)
        assert (found.attempts, found.asked, found.expires) == (2, asked, deadline)
    queries.settle({key: "ERROR"}, NOW)
    settled = queries.get_transaction(key)
    assert (settled.attempts, settled.asked, settled.expires) == (2, asked, None)


@pytest.mark.parametrize("room", [0, MANY])
def test_a_new_transaction_reads_as_it_was_answered(queries, room):
    answers, _ = queries.store([Draft(1), Draft(1, "key")], room=room)
    assert [queries.get_transaction(answer.id) for answer in answers] == answers


def test_the_first_verdict_wins(queries):
    (key,) = queries.create()
    queries.settle({key: "ERROR"}, NOW)
    assert queries.settle({key: "COMPLETED"}, NOW) == [("contradiction", None)]
    assert queries.settle({key: "ERROR"}, NOW) == [("duplicate", None)]
    assert queries.settle({uuid4(): "COMPLETED"}, NOW) == [("unknown", None)]
    assert queries.status(key) is Status.ERROR


def test_of_several_verdicts_in_one_batch_the_first_one_wins(queries):
    (key,) = queries.create()
    verdicts = [Verdict(key, "ERROR", "first"), Verdict(key, "COMPLETED"), Verdict(key, "ERROR", "x", "y")]
    settled = models.settle(queries.database, verdicts, NOW, NOW)
    assert [kind for kind, _ in settled] == ["settled", "contradiction", "duplicate"]
    found = queries.get_transaction(key)
    assert (found.status, found.reason, found.equipment) == (Status.ERROR, "first", None)


def test_what_is_not_answered_expires_and_a_late_verdict_settles_it(queries):
    (key,) = queries.create()
    assert queries.expire(NOW + TIMEOUTS.timeout - 1) == []
    assert queries.expire(NOW + TIMEOUTS.timeout) == [key]
    assert queries.status(key) is Status.EXPIRED
    late = TIMEOUTS.timeout + 1
    assert queries.settle({key: "COMPLETED"}, NOW + late) == [("late", late)]
    assert queries.status(key) is Status.COMPLETED


def test_what_is_settled_is_asked_no_more(queries):
    (key,) = queries.create()
    queries.settle({key: "COMPLETED"}, NOW)
    later = NOW + 10 * TIMEOUTS.timeout
    queries.ask_again(later, restart=True)
    assert queries.claim(later, MANY) + queries.claim(later, MANY, waiting=True) == []
    assert queries.expire(later) == []


def test_asking_again_doubles_the_backoff_up_to_30_seconds(queries):
    queries.create()
    now, backoffs = NOW + TIMEOUTS.retry, []
    for _ in range(5):
        assert queries.claim(now - 1, MANY) == []
        ((_, backoff),) = queries.questions(now)
        backoffs.append(backoff // SECOND)
        now += backoff
    assert backoffs == [10, 20, 30, 30, 30]


def test_asking_again_does_not_move_the_time_of_expiry(queries):
    (key,) = queries.create()
    queries.claim(NOW + TIMEOUTS.retry, MANY)
    assert queries.expire(NOW + TIMEOUTS.timeout) == [key]


def test_a_claim_takes_a_question_once_and_the_longest_due_first(queries):
    keys = [key for step in range(4) for key in queries.create(1, NOW + step, room=0)]
    first = queries.claim(NOW + 9, 3, waiting=True)
    second = queries.claim(NOW + 9, 3, waiting=True)
    assert {*first} == set(keys[:3])
    assert second == keys[3:]


def test_starting_anew_clears_the_deadline_until_the_question_is_asked_again(queries):
    (key,) = queries.create()
    later = NOW + TIMEOUTS.timeout - 1
    queries.ask_again(later, restart=True)
    assert queries.expire(later + TIMEOUTS.timeout) == []
    assert queries.claim(later, waiting=True) == [key]
    assert queries.expire(later + TIMEOUTS.timeout - 1) == []
    assert queries.expire(later + TIMEOUTS.timeout) == [key]


def test_asking_again_because_equipment_came_online_keeps_the_deadline(queries):
    (key,) = queries.create()
    later = NOW + TIMEOUTS.timeout - 1
    queries.ask_again(later, restart=False)
    assert queries.claim(later) == [key]
    assert queries.expire(NOW + TIMEOUTS.timeout) == [key]


@pytest.mark.parametrize("restart", [False, True])
def test_asking_again_and_again_asks_once_a_second(queries, restart):
    queries.create()
    for step in range(10):
        queries.ask_again(NOW + step, restart)
        assert queries.claim(NOW + step, waiting=restart) == []
    assert len(queries.claim(NOW + SECOND, waiting=restart)) == 1


@pytest.mark.parametrize("step", [-3600 * SECOND, 3600 * SECOND])
@pytest.mark.parametrize("room", [0, MANY])
def test_after_a_restart_with_another_wall_clock_everything_is_asked(queries, step, room):
    (key,) = queries.create(room=room)
    now = NOW + step
    queries.ask_again(now, restart=True)
    assert queries.claim(now, MANY, waiting=True) == [key]
    assert queries.expire(now + TIMEOUTS.timeout - 1) == []


def test_the_window_counts_the_questions_whose_clock_runs(queries):
    keys = queries.create(30, room=20)
    assert queries.room() == models.WINDOW - 20
    queries.claim(NOW, 5, waiting=True)
    assert queries.room() == models.WINDOW - 25
    queries.settle(dict.fromkeys(keys, "ERROR"), NOW)
    assert queries.room() == models.WINDOW


def test_a_batch_answers_each_draft_for_itself(queries):
    drafts = [Draft(1), Draft(77), Draft(1, "key"), Draft(1, "key")]
    (good, unknown, first, again), questions = queries.store(drafts)
    assert good.id == drafts[0].id
    assert isinstance(unknown, NoStation)
    assert "77" in str(unknown)
    assert first == again
    assert first.id == drafts[2].id
    assert [question.transaction_id for question, _ in questions] == [good.id, first.id]
    assert queries.count() == 2


def test_a_draft_that_is_stored_already_stays_as_it_is(queries):
    drafts = [Draft(1), Draft(1, "key")]
    answers, _ = queries.store(drafts)
    again, _ = queries.store(drafts, NOW + SECOND)
    assert again == answers
    assert queries.count() == 2


def test_a_key_of_an_earlier_batch_gets_the_transaction_as_it_is_now(queries):
    queries.create_station("another")
    (first,), _ = queries.store([Draft(1, "key")])
    queries.settle({first.id: "COMPLETED"}, NOW + 1)
    (again, other), questions = queries.store([Draft(1, "key"), Draft(2, "key")], NOW + 2)
    assert again == queries.get_transaction(first.id)
    assert again.status is Status.COMPLETED
    assert isinstance(other, KeyUsed)
    assert questions == []


def test_the_database_itself_refuses_a_transaction_without_a_station(database):
    row = f"""INSERT INTO "transaction" (id, station_id, status, created, updated, attempts)
        VALUES ('{uuid4().hex}', 9, 'PENDING', 0, 0, 0)"""
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        database.execute_sql(row)


def test_the_database_itself_refuses_to_delete_a_station_with_transactions(database, queries):
    queries.create()
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        database.execute_sql("DELETE FROM station")
    with pytest.raises(HasTransactions):
        queries.delete_station(1)


def test_ids_are_ordered_by_time_and_within_a_batch(queries):
    keys = (
        queries.create(1000)
        + queries.create(1, NOW + 1)
        + queries.create(1, NOW + 1000)
        + queries.create(1, NOW + SECOND)
    )
    assert keys == sorted(keys)
    assert {(key.version, key.variant) for key in keys} == {(7, RFC_4122)}
    assert {key.int >> 80 for key in keys[:1000]} == {NOW // 1000}
