"""A broker that refuses, delays, forgets or repeats its PUBACKs: only silence of the equipment expires."""

import contextlib
import itertools
import threading
import time

import pytest

from programs import wait_until
from schemas import Status
from scripted import (
    PUBACK,
    PUBLISH,
    QUESTION,
    ScriptedBroker,
    confirm,
    nothing,
    packet,
    puback,
    take_and_confirm,
)

REFUSES, ACKNOWLEDGES = "refuses what is published on", "does not acknowledge what is published on"


def later(seconds: float, function, *arguments) -> None:
    threading.Timer(seconds, function, arguments).start()


def slow(seconds: float, answers: bool = False):
    """Acknowledge one question after the other, so many seconds after each other."""
    free_at = [0.0]

    def take(connection, packet) -> None:
        free_at[0] = max(free_at[0], time.monotonic()) + seconds
        answer = take_and_confirm if answers else lambda c, p: c.puback(p.id)
        later(free_at[0] - time.monotonic(), guarded, answer, connection, packet)

    return take


def guarded(answer, connection, packet) -> None:
    """The connection may be closed by now."""
    with contextlib.suppress(OSError):
        answer(connection, packet)


def asked(broker: ScriptedBroker) -> list:
    return list(itertools.chain(*(connection.published(QUESTION) for connection in broker.connections)))


# Refused


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0x80, "Unspecified error"),
        (0x83, "Implementation specific error"),
        (0x87, "Not authorized"),
        (0x90, "Topic name invalid"),
        (0x97, "Quota exceeded"),
        (0x99, "Payload format invalid"),
    ],
)
def test_a_refusal_is_said_until_a_question_is_taken(start, scripted, code, reason):
    """The sentence outlives reconnects, and nothing expires; a PUBACK below 0x80 ends it, and all settle."""
    refuses = threading.Event()
    refuses.set()
    broker = scripted(publish=lambda *ask: (puback(code) if refuses.is_set() else take_and_confirm)(*ask))
    pair = start(broker.port, validation_timeout=2)
    pair.ready()
    keys = [pair.create() for _ in range(5)]
    pair.says(REFUSES, reason, seconds=6)
    broker.connection(2)
    assert REFUSES in pair.listener.problem
    refuses.clear()
    pair.ready()
    wait_until(lambda: pair.count("COMPLETED") == len(keys), "all are settled")
    assert pair.count("EXPIRED") == 0


def test_a_refusal_for_longer_than_the_timeout_expires_nothing(start, scripted, mend):
    broker = scripted(publish=puback(0x87))
    pair = start(broker.port, validation_timeout=2)
    pair.ready()
    for _ in range(50):
        pair.create_later()
    pair.says(REFUSES, "Not authorized", seconds=6)
    said = set()

    def longer() -> bool:
        said.add(REFUSES in pair.listener.problem)
        return len(broker.connections) >= 8

    wait_until(longer, "it tries again and again", 30)
    assert said == {True}
    assert pair.count("EXPIRED") == 0
    mend(broker, pair)


@pytest.mark.parametrize("code", [0, 0x10])
def test_no_matching_subscribers_is_no_refusal(start, scripted, code):
    broker = scripted(publish=puback(code))
    pair = start(broker.port, validation_timeout=2)
    pair.ready()
    key = pair.create()
    pair.settled(key, Status.EXPIRED)
    assert not pair.listener.problem
    assert len(broker.connections) == 1


def test_an_unknown_reason_in_puback_is_no_crash(start, scripted, mend):
    broker = scripted(publish=puback(0x42))
    pair = start(broker.port)
    pair.ready()
    pair.create()
    pair.says("was lost", "Protocol error", seconds=6)
    mend(broker, pair)


# Never, or late


def test_a_broker_that_acknowledges_nothing_is_left_and_nothing_expires(start, scripted, mend):
    broker = scripted(publish=nothing)
    pair = start(broker.port, validation_timeout=3)
    pair.ready()
    for _ in range(100):
        pair.create_later()
    wait_until(lambda: len(asked(broker)) == 20, "the window is full")
    began = time.monotonic()
    pair.says(ACKNOWLEDGES, seconds=13)
    assert time.monotonic() - began > 9
    assert len(asked(broker)) == 20
    wait_until(lambda: len(broker.connection(2).published(QUESTION)) == 20, "it tries again", 5)
    assert ACKNOWLEDGES in pair.listener.problem
    assert pair.count("PENDING") == 100
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
    wait_until(lambda: pair.count("EXPIRED") == 30, "what was taken expires", 8)
    pair.says(ACKNOWLEDGES, seconds=13)
    assert pair.count("EXPIRED") == 30
    mend(broker, pair, expired=30)


def test_a_slow_broker_does_not_keep_questions_alive(start, scripted, mend):
    broker = scripted(publish=slow(1.1))
    pair = start(broker.port, validation_timeout=3, validation_retry=1)
    pair.ready()
    keys = [pair.create() for _ in range(4)]
    wait_until(lambda: pair.count("EXPIRED") == len(keys), "all expire", 25)
    assert not pair.listener.problem
    assert len(broker.connections) == 1
    mend(broker, pair, expired=len(keys))


def test_a_slow_broker_expires_nothing_that_it_was_not_given(start, scripted):
    """60 questions take 18 s, with a timeout of 3 s."""
    broker = scripted(publish=slow(0.3, answers=True))
    pair = start(broker.port, validation_timeout=3, validation_retry=1)
    pair.ready()
    for _ in range(60):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 60, "all are settled", 40)
    assert len(asked(broker)) < 80


# Wrong


def test_acknowledgements_of_what_was_not_sent_change_nothing(start, scripted):
    """Unknown ids before and after, each PUBACK three times, and one without a question."""

    def acknowledge(connection, packet) -> None:
        for number in (0, 7777, packet.id, packet.id, packet.id, 65535):
            connection.puback(number)
        connection.puback(packet.id, 0x87)  # a refusal of what was taken already
        take_and_confirm(connection, packet)

    broker = scripted(publish=acknowledge)
    pair = start(broker.port)
    pair.ready()
    broker.connection().puback(1)
    for _ in range(400):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 400, "all are settled", 20)
    assert not pair.listener.problem
    assert len(broker.connections) == 1


def test_acknowledgements_in_another_order_are_counted(start, scripted):
    held = []

    def shuffle(connection, packet) -> None:
        held.append(packet)
        if len(held) == 20 or len(connection.published(QUESTION)) == 400:
            for question in reversed(held):
                take_and_confirm(connection, question)
            held.clear()

    broker = scripted(publish=shuffle)
    pair = start(broker.port, validation_retry=30)
    pair.ready()
    for _ in range(400):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 400, "all are settled", 20)


def test_pubrec_and_pubcomp_instead_of_puback(start, scripted, mend):
    def answer(connection, question) -> None:
        for kind in (5, 7):  # PUBREC, PUBCOMP
            connection.send(packet(kind, question.id.to_bytes(2, "big")))

    broker = scripted(publish=answer)
    pair = start(broker.port)
    pair.ready()
    pair.create()
    mend(broker, pair)


def test_a_verdict_may_come_before_the_puback(start, scripted):
    def answer(connection, question) -> None:
        confirm(connection, question)
        connection.puback(question.id)

    broker = scripted(publish=answer)
    pair = start(broker.port)
    pair.ready()
    for _ in range(100):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 100, "all are settled")


def test_a_puback_may_come_before_publish_returns(start, scripted):
    """As many questions as fast as possible, each acknowledged at once: no slot is lost."""
    broker = scripted(publish=take_and_confirm)
    pair = start(broker.port, validation_retry=30)
    pair.ready()
    for _ in range(5000):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 5000, "all are settled", 60)
    assert len(broker.connection().received(PUBLISH)) == 5000
    wait_until(lambda: len(broker.connection().received(PUBACK)) == 5000, "each verdict is acknowledged")
    connection = pair.listener._connection
    assert [connection.slots.acquire(blocking=False) for _ in range(21)] == [True] * 20 + [False]
