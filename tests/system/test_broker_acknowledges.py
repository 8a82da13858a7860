"""A question's clock runs only while the broker takes it: only silence of the equipment expires."""

import contextlib
import itertools
import threading
import time

import pytest

from programs import Broker, Equipment, wait_until
from schemas import Status
from scripted import (
    PUBACK,
    QUESTION,
    STATUS,
    SUBSCRIBE,
    ScriptedBroker,
    confirm,
    packet,
    puback,
    take_and_confirm,
)


def asked(broker: ScriptedBroker) -> list:
    return list(itertools.chain(*(connection.published(QUESTION) for connection in broker.connections)))


@pytest.fixture
def mend(tmp_path, programs):
    """A function that puts a real broker and equipment in place of a scripted broker: all must settle."""

    def mend(broker: ScriptedBroker, pair, expired: int = 0) -> None:
        broker.close()
        real = Broker(tmp_path, broker.port)
        programs.extend([real.start(), Equipment(tmp_path, real).start()])
        pair.ready()
        pair.create()
        wait_until(lambda: pair.count("PENDING") == 0, "everything is settled")
        assert pair.count("EXPIRED") <= expired
        assert pair.listener.alive
        assert pair.ledger.alive

    return mend


def test_a_refusal_is_said_until_a_question_is_taken_and_expires_nothing(start, scripted, mend):
    """The sentence outlives reconnects, for longer than the timeout."""
    broker = scripted(publish=puback(0x87))
    pair = start(broker.port, validation_timeout=2)
    pair.ready()
    for _ in range(50):
        pair.create_later()
    pair.says("refuses what is published on", "Not authorized")
    said = set()

    def longer() -> bool:
        said.add("refuses what is published on" in pair.listener.problem)
        return len(broker.connections) >= 5

    wait_until(longer, "it tries again and again")
    assert said == {True}
    assert pair.count("EXPIRED") == 0
    mend(broker, pair)


def test_some_are_taken_and_some_are_not(start, scripted, mend):
    """Of 100, those that the broker never took do not expire, those that it took do."""
    taken = itertools.count(1)
    broker = scripted(publish=lambda c, p: c.puback(p.id) if next(taken) <= 30 else None)
    pair = start(broker.port, validation_timeout=3, validation_retry=2.5)
    pair.ready()
    for _ in range(100):
        pair.create_later()
    wait_until(lambda: len(asked(broker)) >= 50, "the window is full")
    wait_until(lambda: pair.count("EXPIRED") == 30, "what was taken expires")
    pair.says("does not acknowledge what is published on")
    assert pair.count("EXPIRED") == 30
    mend(broker, pair, expired=30)


def slow(seconds: float, answers: bool = False):
    """Acknowledge one question after the other, so many seconds after each other."""
    free_at = [0.0]

    def answer(connection, question) -> None:
        with contextlib.suppress(OSError):  # the connection may be closed by now
            take_and_confirm(connection, question) if answers else connection.puback(question.id)

    def take(connection, question) -> None:
        free_at[0] = max(free_at[0], time.monotonic()) + seconds
        threading.Timer(free_at[0] - time.monotonic(), answer, (connection, question)).start()

    return take


def test_a_slow_broker_does_not_keep_questions_alive(start, scripted):
    broker = scripted(publish=slow(1.1))
    pair = start(broker.port, validation_timeout=3, validation_retry=1)
    pair.ready()
    keys = [pair.create() for _ in range(4)]
    wait_until(lambda: pair.count("EXPIRED") == len(keys), "all expire")
    assert not pair.listener.problem
    assert len(broker.connections) == 1


def test_a_slow_broker_expires_nothing_that_it_was_not_given(start, scripted):
    """40 questions take 12 s, with a timeout of 4 s."""
    broker = scripted(publish=slow(0.3, answers=True))
    pair = start(broker.port, validation_timeout=4, validation_retry=1)
    pair.ready()
    for _ in range(40):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 40, "all are settled")
    assert len(asked(broker)) < 80


def test_a_suback_that_comes_again_is_not_news(start, scripted):
    """Otherwise a broker that repeats itself would keep questions alive."""
    broker = scripted()
    pair = start(broker.port, validation_timeout=2, validation_retry=1)
    pair.ready()
    key = pair.create()
    connection = broker.connection()

    def expired() -> bool:
        connection.suback(connection.received(SUBSCRIBE)[0].id, [1, 1])
        return pair.status(key) is Status.EXPIRED

    wait_until(expired, "it expires")


@pytest.mark.parametrize("words", [("online",), ("offline", "online")])
def test_under_flapping_equipment_everything_expires(start, scripted, words):
    broker = scripted()
    pair = start(broker.port, validation_timeout=5, validation_retry=2)
    pair.ready()
    connection, keys = broker.connection(), [pair.create() for _ in range(40)]

    def expired() -> bool:
        for word in words:
            connection.publish(STATUS + "twin", word.encode())
        return pair.count("EXPIRED") == len(keys)

    began = time.monotonic()
    wait_until(expired, "all expire")
    questions = [packet.payload for packet in connection.published(QUESTION)]
    most = 3 + time.monotonic() - began  # once a second at most
    assert max(questions.count(payload) for payload in questions) <= most


# PUBACKs that are wrong, or come in another order: no slot is lost

MANY = 200


def of_what_was_not_sent(connection, question) -> None:
    for number in (0, 7777, question.id, question.id, question.id, 65535):
        connection.puback(number)
    connection.puback(question.id, 0x87)  # a refusal of what was taken already
    take_and_confirm(connection, question)


def in_another_order(connection, _) -> None:
    questions = connection.published(QUESTION)
    if len(questions) % 20 == 0:
        for question in reversed(questions[-20:]):
            take_and_confirm(connection, question)


def before_them(connection, question) -> None:
    confirm(connection, question)
    connection.puback(question.id)


@pytest.mark.parametrize("answer", [of_what_was_not_sent, in_another_order, before_them, take_and_confirm])
def test_any_order_of_acknowledgements_is_counted(start, scripted, answer):
    broker = scripted(publish=answer)
    pair = start(broker.port, validation_retry=300, validation_timeout=600)
    pair.ready()
    count = 5 * MANY if answer is take_and_confirm else MANY  # a PUBACK may come before publish() returns
    for _ in range(count):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == count, "all are settled")
    wait_until(lambda: len(broker.newest.received(PUBACK)) >= count, "each verdict is acknowledged")
    assert len(broker.connections) == 1
    slots = pair.listener._connection.slots
    assert [slots.acquire(blocking=False) for _ in range(21)] == [True] * 20 + [False]


def test_pubrec_and_pubcomp_instead_of_puback_cost_no_transaction(start, scripted, mend):
    def answer(connection, question) -> None:
        for kind in (5, 7):  # PUBREC, PUBCOMP
            connection.send(packet(kind, question.id.to_bytes(2, "big")))

    broker = scripted(publish=answer)
    pair = start(broker.port)
    pair.ready()
    pair.create()
    mend(broker, pair)
