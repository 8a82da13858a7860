"""A question's clock runs only while the broker takes it: only silence of the equipment expires."""

import contextlib
import itertools
import threading
import time

import pytest

from programs import wait_until
from scripted import PUBACK, QUESTION, STATUS, ScriptedBroker, confirm, puback, take_and_confirm


@pytest.fixture
def meets(start, scripted):
    """A function that starts a broker that answers questions like this, and a pair that is ready for it."""

    def meets(publish, count: int, **options):
        broker = scripted(publish=publish)
        pair = start(broker.port, **options)
        pair.ready()
        for _ in range(count):
            pair.create_later()
        return broker, pair

    return meets


def asked(broker: ScriptedBroker) -> list[bytes]:
    connections = broker.connections
    return [question.payload for connection in connections for question in connection.published(QUESTION)]


def mend(broker: ScriptedBroker, pair, expired: int = 0) -> None:
    """Let the broker take and confirm everything: all that has not expired must settle."""
    broker.becomes(publish=take_and_confirm)
    pair.ready()
    pair.create()
    wait_until(lambda: pair.count("PENDING") == 0, "everything is settled")
    assert pair.count("EXPIRED") == expired


def test_a_refusal_is_said_until_a_question_is_taken_and_expires_nothing(meets):
    """The sentence outlives reconnects, for longer than the timeout."""
    broker, pair = meets(puback(0x87), 50, validation_timeout=2)
    pair.says("refuses what is published on", "Not authorized")
    said = set()

    def longer() -> bool:
        said.add("refuses what is published on" in pair.listener.problem)
        return len(broker.connections) >= 5

    wait_until(longer, "it tries again and again")
    assert said == {True}
    assert pair.count("EXPIRED") == 0
    mend(broker, pair)


def test_some_are_taken_and_some_are_not(meets):
    """Of 100, those that the broker never took do not expire, those that it took do."""
    taken = itertools.count(1)
    some = lambda connection, packet: connection.puback(packet.id) if next(taken) <= 30 else None  # noqa: E731
    broker, pair = meets(some, 100, validation_timeout=3, validation_retry=2.5)
    wait_until(lambda: len(asked(broker)) >= 50, "the window is full")
    wait_until(lambda: pair.count("EXPIRED") == 30, "what was taken expires")
    mend(broker, pair, expired=30)


def slow(seconds: float, then=lambda connection, packet: None):
    """Acknowledge one question after the other, so many seconds after each other, and do this."""
    free_at = [0.0]

    def answer(connection, question) -> None:
        with contextlib.suppress(OSError):  # the connection may be closed by now
            connection.puback(question.id)
            then(connection, question)

    def take(connection, question) -> None:
        free_at[0] = max(free_at[0], time.monotonic()) + seconds
        threading.Timer(free_at[0] - time.monotonic(), answer, (connection, question)).start()

    return take


def test_a_slow_broker_does_not_keep_questions_alive(meets):
    broker, pair = meets(slow(1.1), 4, validation_timeout=2)
    wait_until(lambda: pair.count("EXPIRED") == 4, "all expire")
    assert not pair.listener.problem
    assert len(broker.connections) == 1


def test_a_slow_broker_expires_nothing_that_it_was_not_given(meets):
    """40 questions take 6 s, with a timeout of 2 s."""
    broker, pair = meets(slow(0.15, confirm), 40, validation_timeout=2)
    wait_until(lambda: pair.count("COMPLETED") == 40, "all are settled")
    assert len(asked(broker)) < 80


def test_under_flapping_equipment_everything_expires(meets):
    broker, pair = meets(puback(), 40, validation_timeout=3)
    began = time.monotonic()

    def expired() -> bool:
        for word in (b"offline", b"online"):
            broker.newest.publish(STATUS + "twin", word)
        return pair.count("EXPIRED") == 40

    wait_until(expired, "all expire")
    questions = asked(broker)
    most = 3 + time.monotonic() - began  # once a second at most
    assert max(questions.count(question) for question in questions) <= most


# PUBACKs that are wrong, or come in another order: no slot is lost


def of_what_was_not_sent(connection, question) -> None:
    for number in (0, 7777, question.id, question.id, 65535):
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
def test_any_order_of_acknowledgements_is_counted(meets, answer):
    count = 1000 if answer is take_and_confirm else 200  # a PUBACK may come before publish() returns
    broker, pair = meets(answer, count, validation_retry=300, validation_timeout=600)
    wait_until(lambda: pair.count("COMPLETED") == count, "all are settled")
    wait_until(lambda: len(broker.newest.received(PUBACK)) >= count, "each verdict is acknowledged")
    assert len(broker.connections) == 1
    slots = pair.listener._connection.slots
    assert [slots.acquire(blocking=False) for _ in range(21)] == [True] * 20 + [False]
