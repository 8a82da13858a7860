"""Brokers that misbehave, limit us or are slow: the service says why, and settles everything in the end."""

import contextlib
import gc
import json
import socket
import struct
import threading
import time
import warnings

import pytest

from brokers import SAYS, WORKS
from mqtt_listener import SUBSCRIPTIONS, UNACKNOWLEDGED
from programs import wait_until
from scripted import (
    ANSWER,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PACKETS,
    PINGREQ,
    PUBACK,
    PUBLISH,
    QUESTION,
    STATUS,
    SUBACK,
    SUBSCRIBE,
    ScriptedBroker,
    both,
    connack,
    hang_up,
    in_turn,
    nothing,
    packet,
    puback,
    take_and_confirm,
)


@pytest.fixture
def meets(start, scripted):
    """A function that starts a broker with these reactions, and a pair with these options."""

    def meets(publish=take_and_confirm, count: int = 0, **given):
        broker = scripted(publish=publish, **{name: given.pop(name) for name in {*given} & {*PACKETS}})
        pair = start(broker.port, **{"patient": False} | given)
        pair.ready()
        for _ in range(count):
            pair.create_later()
        return broker, pair

    return meets


def verdict(key) -> bytes:
    return json.dumps({"transaction_id": str(key), "status": "COMPLETED"}).encode()


def asked(broker: ScriptedBroker) -> list[bytes]:
    connections = broker.connections
    return [question.payload for connection in connections for question in connection.published(QUESTION)]


def mend(broker: ScriptedBroker, pair, expired: int = 0) -> None:
    """Let the broker take and confirm everything: all that has not expired must settle."""
    broker.becomes(publish=take_and_confirm)
    wait_until(lambda: pair.count("PENDING") == 0, "everything is settled")
    pair.settled(pair.create())
    pair.ready()
    assert pair.count("EXPIRED") == expired


# What it says


def test_it_says_what_each_broker_does_and_settles_everything_once_it_behaves(start, scripted):
    """All of them at once, because some take ten seconds."""
    met = {}
    for name, (reactions, words, _) in SAYS.items():
        broker = scripted(**{"publish": take_and_confirm} | reactions)
        pair = start(broker.port, patient=False)
        pair.create()
        met[name] = broker, pair, words
    for _, pair, words in met.values():
        pair.says(words)
    for broker, pair, _ in met.values():
        mend(broker, pair)


def test_a_broker_that_closes_after_connack_meets_no_busy_loop(start, scripted):
    broker = scripted(connect=both(connack(), hang_up))
    start(broker.port)
    broker.connection()
    began = time.monotonic()
    broker.connection(3)
    assert time.monotonic() - began > 1.75


def test_something_that_never_speaks_tls_is_given_up(start, certificates):
    with socket.create_server(("127.0.0.1", 0)) as silent, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # paho leaves its socket to the garbage collector
        pair = start(silent.getsockname()[1], mqtt_ca_file=str(certificates / "ours.pem"))
        pair.says("cannot be reached", "timed out")
        assert pair.listener.alive
        pair.stop()
        gc.collect()


# What it keeps to


@pytest.mark.parametrize("name", WORKS)
def test_a_broker_that_works_in_another_way_settles_everything(meets, name):
    broker, pair = meets(**WORKS[name])
    for key in [pair.create() for _ in range(10)]:
        pair.settled(key)
    (connection,) = broker.connections
    questions = connection.published(QUESTION)
    assert {question.qos for question in questions} == {0 if "QoS" in name else 1}
    assert max(question.size for question in questions) < 512
    assert pair.listener.knows_equipment == (name not in ("CONNACK: no retain", "CONNACK: no wildcards"))
    topics = [topic for topic, _ in SUBSCRIPTIONS if "wildcards" not in name or "+" not in topic]
    assert connection.received(SUBSCRIBE)[0].topics == topics


@pytest.mark.parametrize("limit", [1, 65535])
def test_receive_maximum_is_kept_and_all_settle(meets, limit):
    options = {"validation_retry": 300, "validation_timeout": 600}
    broker, pair = meets(nothing, 60, connect=connack(ReceiveMaximum=limit), **options)
    questions = lambda: broker.newest.published(QUESTION)  # noqa: E731
    for taken in range(60):
        wanted = min(taken + min(limit, 20), 60)
        wait_until(lambda wanted=wanted: len(questions()) >= wanted, f"{wanted} are published")
        assert len(questions()) == wanted
        take_and_confirm(broker.newest, questions()[taken])
    wait_until(lambda: pair.count("COMPLETED") == 60, "all are settled")


def test_it_starts_a_clean_session_each_time_and_bounds_what_it_has_not_acknowledged(meets):
    broker, pair = meets()
    broker.newest.close()
    broker.connection(2)
    pair.ready()
    for connection in broker.connections:
        (connect,) = connection.received(CONNECT)
        assert (connect.clean_start, connect.will) == (True, None)
        assert connect.client_id.startswith("energy2go-")
        assert connect.properties == {"ReceiveMaximum": UNACKNOWLEDGED}


def test_a_server_keep_alive_is_a_limit_and_lasts_for_its_connection(meets):
    """With 0 or an hour, a frozen broker would not be noticed."""
    connacks = [in_turn(connack(ServerKeepAlive=limit), connack()) for limit in (0, 1, 65535)]
    for broker in [meets(connect=reaction)[0] for reaction in connacks]:
        wait_until(lambda one=broker: one.newest.received(PINGREQ), "it pings")
        broker.newest.close()
        wait_until(lambda one=broker: one.connection(2).received(CONNECT), "it connects again")
        assert broker.newest.received(CONNECT)[0].keepalive == 5


# What a broker may deliver


def message(topic: bytes, payload: bytes = b"", flags: int = 2, properties: bytes = b"\0") -> bytes:
    """A PUBLISH as it is on the wire, with the id 77 unless its QoS is 0."""
    number = b"\0\x4d" if flags & 6 else b""
    return packet(PUBLISH, struct.pack(">H", len(topic)) + topic + number + properties + payload, flags)


ONLINE, VERDICT = STATUS.encode() + b"x", ANSWER.encode()
TOLERATED = {
    "our own topic": message(QUESTION.encode(), b"{}"),
    "no topic, but an alias": message(b"", b"x", properties=b"\3\x23\0\1"),
    "QoS 2 without its PUBREL": message(ONLINE, b"online", flags=4),
    "DUP and RETAIN": message(ONLINE, b"offline", flags=11),
    "a status that is not ASCII": message(ONLINE, b"\xff"),
    "a deep verdict": message(VERDICT, b"[" * 100_000),
    "a topic of 65,535 bytes": message(b"x" * 65535, b"x"),
    "SUBACK again": packet(SUBACK, b"\0\1\0\1\1"),
    # We skip the properties of a PUBLISH, so mistakes in them do not matter.
    "properties longer than the packet": message(VERDICT, properties=b"\x7f"),
}
BROKEN = {
    "DISCONNECT, and stays": packet(DISCONNECT, b"\x8b"),
    "a topic that is not UTF-8": message(b"EQUIPMENT/\xff", b"x"),
    "an empty PUBLISH": packet(PUBLISH),
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "an empty PUBACK": packet(PUBACK),
    "a second CONNACK that refuses": packet(CONNACK, b"\0\x87\0"),
}


def test_what_a_broker_should_not_send_changes_nothing(meets):
    broker, pair = meets()
    session = pair.listener.session
    for what, data in TOLERATED.items():
        broker.newest.send(data * 3)
        pair.settled(pair.create())
        assert (len(broker.connections), pair.listener.session) == (1, session), what


def test_a_broken_packet_costs_one_reconnect(meets):
    broker, pair = meets(nothing)
    for number, (what, data) in enumerate(BROKEN.items(), 1):
        pair.create()
        wait_until(lambda: broker.newest.published(QUESTION), "it is asked")
        broker.newest.send(data)
        wait_until(lambda number=number: pair.listener.session == number + 1, what)
        assert len(broker.connections) == number + 1
    mend(broker, pair)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_verdict_may_come_with_any_qos_and_as_often_as_it_likes(meets, qos):
    broker, pair = meets(puback())
    key, connection = pair.create(), broker.newest
    for _ in range(100):
        connection.publish(ANSWER, verdict(key), qos=qos)
        if qos == 2:
            connection.send(packet(6, connection.last_id.to_bytes(2, "big"), 2))  # PUBREL
    pair.settled(key)
    kind = {1: PUBACK, 2: 7}.get(qos)  # PUBCOMP
    wait_until(lambda: not kind or len(connection.received(kind)) == 100, "all are acknowledged")
    wait_until(lambda: pair.ledger.counts["duplicate"] == 99, "they are counted")


def test_verdicts_that_are_acknowledged_after_a_reconnect_go_nowhere(meets, monkeypatch):
    """An acknowledgement must not reach the next connection, where its id may mean another message."""
    broker, pair = meets(nothing)
    key, first = pair.create(), broker.newest
    arrived, put = threading.Event(), pair.listener._put
    monkeypatch.setattr(pair.listener, "_put", lambda job: (put(job), arrived.set()))
    with pair.store.transaction():  # the ledger waits for its turn to write
        first.publish(ANSWER, verdict(key))
        assert arrived.wait(30)
        broker.becomes(publish=take_and_confirm)
        wait_until(lambda: pair.listener.session == 2, "it is subscribed again")
    pair.settled(key)
    pair.settled(pair.create())
    second = broker.newest
    wait_until(lambda: len(second.received(PUBACK)) == second.last_id > 0, "all on it are acknowledged")
    assert {packet.id for packet in second.received(PUBACK)} == set(range(1, second.last_id + 1))


CALLBACKS = "pre_connect connect subscribe disconnect publish message"


@pytest.mark.parametrize("name", CALLBACKS.split())
def test_an_exception_in_a_callback_costs_a_reconnect(meets, monkeypatch, name):
    """Each of them raises up to three times in a row."""
    broker, pair = meets()
    raised, usual = [], getattr(pair.listener, f"_on_{name}")

    def raising(*arguments):
        if len(raised) < 3:
            raised.append(name)
            raise RuntimeError(f"this is {name}")
        return usual(*arguments)

    monkeypatch.setattr(pair.listener, f"_on_{name}", raising)
    broker.newest.close()
    pair.settled(pair.create())
    wait_until(lambda: raised, "it has raised")
    pair.settled(pair.create())
    pair.ready()
    assert pair.listener.alive


# A question's clock runs only while the broker takes it: only silence of the equipment expires.


def test_a_refusal_is_said_until_a_question_is_taken_and_expires_nothing(meets):
    """The sentence outlives reconnects, for longer than the timeout."""
    broker, pair = meets(puback(0x87), 50, validation_timeout=2, patient=True)
    pair.says("refuses what is published on", "Not authorized")
    said = set()

    def longer() -> bool:
        said.add("refuses what is published on" in pair.listener.problem)
        return len(broker.connections) >= 5

    wait_until(longer, "it tries again and again")
    assert said == {True}
    assert pair.count("EXPIRED") == 0
    mend(broker, pair)


def slow(seconds: float):
    """Acknowledge one question after the other, so many seconds after each other."""
    free_at = [0.0]

    def answer(connection, question) -> None:
        with contextlib.suppress(OSError):  # the connection may be closed by now
            connection.puback(question.id)

    def take(connection, question) -> None:
        free_at[0] = max(free_at[0], time.monotonic()) + seconds
        threading.Timer(free_at[0] - time.monotonic(), answer, (connection, question)).start()

    return take


def test_a_slow_broker_does_not_keep_questions_alive(meets):
    broker, pair = meets(slow(1.1), 4, validation_timeout=2)
    wait_until(lambda: pair.count("EXPIRED") == 4, "all expire")
    assert not pair.listener.problem
    assert len(broker.connections) == 1


# PUBACKs that are wrong: no slot is lost


def of_what_was_not_sent(connection, question) -> None:
    for number in (0, 7777, question.id, question.id, 65535):
        connection.puback(number)
    connection.puback(question.id, 0x87)  # a refusal of what was taken already
    take_and_confirm(connection, question)


@pytest.mark.parametrize("answer", [of_what_was_not_sent, take_and_confirm])
def test_acknowledgements_are_counted(meets, answer):
    count = 1000 if answer is take_and_confirm else 200  # a PUBACK may come before publish() returns
    broker, pair = meets(answer, count, validation_retry=300, validation_timeout=600)
    wait_until(lambda: pair.count("COMPLETED") == count, "all are settled")
    wait_until(lambda: len(broker.newest.received(PUBACK)) >= count, "each verdict is acknowledged")
    assert len(broker.connections) == 1
    slots = pair.listener._connection.slots
    assert [slots.acquire(blocking=False) for _ in range(21)] == [True] * 20 + [False]
