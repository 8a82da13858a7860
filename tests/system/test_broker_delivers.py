"""What a broker may deliver: hostile packets cost one reconnect at most, and no transaction."""

import json
import struct
import threading

import pytest

from mqtt_listener import Listener
from pair import Pair
from programs import wait_until
from scripted import (
    ANSWER,
    PUBACK,
    PUBLISH,
    QUESTION,
    STATUS,
    Connection,
    in_turn,
    nothing,
    packet,
    take_and_confirm,
)


def verdict(key) -> bytes:
    return json.dumps({"transaction_id": str(key), "status": "COMPLETED"}).encode()


def message(topic: bytes, payload: bytes = b"", flags: int = 2, properties: bytes = b"\0") -> bytes:
    """A PUBLISH as it is on the wire, with the id 77 unless its QoS is 0."""
    number = b"\0\x4d" if flags & 6 else b""
    return packet(PUBLISH, struct.pack(">H", len(topic)) + topic + number + properties + payload, flags)


TOLERATED = {
    "an unknown topic": message(b"EQUIPMENT/OTHER", b"x"),
    "a topic below the one of the verdicts": message(ANSWER.encode() + b"/more", b"{}"),
    "our own topic": message(QUESTION.encode(), b"{}"),
    "$SYS": message(b"$SYS/broker/uptime", b"1"),
    "no topic, but an alias": message(b"", b"x", properties=b"\3\x23\0\1"),
    "no topic": message(b"", b"x"),
    "QoS 0": message(STATUS.encode() + b"x", b"online", flags=0),
    "QoS 2": message(STATUS.encode() + b"x", b"online", flags=4) + packet(6, b"\0\x4d", 2),
    "QoS 2 without its PUBREL": message(STATUS.encode() + b"x", b"online", flags=4),
    "a PUBREL for nothing": packet(6, b"\0\x09", 2),
    "DUP and RETAIN": message(STATUS.encode() + b"x", b"offline", flags=11),
    "an empty status": message(STATUS.encode() + b"x"),
    "a status without a name": message(STATUS.encode(), b"online"),
    "a status that is not ASCII": message(STATUS.encode() + b"x", b"\xff"),
    "user properties repeated": message(
        STATUS.encode() + b"x", b"online", properties=b"\x0e\x26\0\1a\0\1b\x26\0\1a\0\1b"
    ),
    "a deep verdict": message(ANSWER.encode(), b"[" * 100_000),
    "a topic of 65,535 bytes": message(b"x" * 65535, b"x"),
    "an UNSUBACK": packet(11, b"\0\1\0\0"),
    "a PINGRESP for nothing": packet(13),
    "a PINGREQ": packet(12),
    # We skip the properties of a PUBLISH, so mistakes in them do not matter.
    "an unknown property": message(ANSWER.encode(), b"{}", properties=b"\2\x7f\1"),
    "a property twice": message(ANSWER.encode(), b"{}", properties=b"\4\1\1\1\1"),
    "a property of another packet": message(ANSWER.encode(), b"{}", properties=b"\3\x21\0\1"),
    "properties longer than the packet": message(ANSWER.encode(), properties=b"\x7f"),
}
BROKEN = {
    "a topic that is not UTF-8": message(b"EQUIPMENT/\xff", b"x"),
    "QoS 3": message(ANSWER.encode(), b"{}", flags=6),
    "no properties": packet(PUBLISH, b"\0\1x\0\1", 2),
    "a topic that is cut off": packet(PUBLISH, b"\0\x20x", 2),
    "an empty PUBLISH": packet(PUBLISH),
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "an empty PUBACK": packet(PUBACK),
    "a short SUBACK": packet(9, b"\0"),
    "a PINGRESP with a body": packet(13, b"x"),
    "packet type 0": packet(0, b"x"),
    "AUTH": packet(15, b"\x18\0"),
    "a second CONNACK that refuses": packet(2, b"\0\x87\0"),
    "a third kind of DISCONNECT": packet(14, b"\x42"),
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 200,
}


@pytest.mark.parametrize("what", TOLERATED)
def test_what_a_broker_should_not_send_changes_nothing(start, scripted, what):
    broker = scripted(publish=take_and_confirm)
    pair = start(broker.port)
    pair.ready()
    broker.connection().send(TOLERATED[what] * 3)
    pair.settled(pair.create())
    assert len(broker.connections) == 1


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_packet_costs_one_reconnect(start, scripted, what):
    broker = scripted(publish=in_turn(nothing, take_and_confirm))
    pair = start(broker.port)
    pair.ready()
    key = pair.create()
    wait_until(lambda: broker.connection().published(QUESTION), "it is asked")
    broker.connection().send(BROKEN[what])
    pair.says(f"127.0.0.1:{broker.port}", seconds=6)
    pair.ready()
    pair.settled(key)
    assert pair.listener.alive
    assert len(broker.connections) == 2


def test_half_a_packet_that_never_ends_is_given_up(start, scripted, mend):
    broker = scripted()
    pair = start(broker.port)
    pair.ready()
    broker.connection().send(message(ANSWER.encode(), b"{}")[:-1])
    pair.says("was lost", "Keep alive timeout", seconds=12)
    mend(broker, pair)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_verdict_may_come_with_any_qos(start, scripted, qos):
    broker = scripted()
    pair = start(broker.port)
    pair.ready()
    key = pair.create()
    connection = broker.connection()
    connection.publish(ANSWER, verdict(key), qos=qos)
    if qos == 2:
        connection.send(packet(6, connection.last_id.to_bytes(2, "big"), 2))  # PUBREL
    pair.settled(key)
    kind = {1: PUBACK, 2: 7}.get(qos)  # PUBCOMP
    wait_until(lambda: not kind or connection.received(kind), "it is acknowledged")


def test_a_verdict_that_comes_a_hundred_times_is_acknowledged_as_often(start, scripted):
    broker = scripted()
    pair = start(broker.port)
    pair.ready()
    key = pair.create()
    for _ in range(100):
        broker.connection().publish(ANSWER, verdict(key))
    wait_until(lambda: len(broker.connection().received(PUBACK)) == 100, "all are acknowledged")
    pair.settled(key)
    assert pair.ledger.counts["duplicate"] == 99


def test_a_status_before_suback_is_noted(start, scripted):
    """A broker may deliver before SUBACK (MQTT 5, section 3.8.4)."""

    def early(connection: Connection, packet) -> None:
        connection.publish(STATUS + "validator", b"online")
        connection.suback(packet.id, [1, 1])

    broker = scripted(subscribe=early, publish=take_and_confirm)
    pair = start(broker.port)
    pair.ready()
    pair.settled(pair.create())
    assert pair.listener.equipment == {"validator": "online"}


def test_verdicts_that_are_acknowledged_after_a_reconnect_go_nowhere(start, scripted):
    """An acknowledgement must not reach the next connection, where its id may mean another message."""

    def answer_later(connection: Connection, packet) -> None:
        if connection is not broker.connection(1):
            take_and_confirm(connection, packet)

    broker = scripted(publish=answer_later)
    pair = start(broker.port)
    pair.ready()
    key = pair.create()
    arrived, put = threading.Event(), pair.listener._put
    pair.listener._put = lambda job: (put(job), arrived.set())
    with pair.store.transaction():  # the ledger waits for its turn to write
        broker.connection().publish(ANSWER, verdict(key))
        assert arrived.wait(15)
        broker.connection().close()
        second = broker.connection(2)
    pair.settled(key)
    pair.settled(pair.create())
    wait_until(lambda: len(second.received(PUBACK)) == second.last_id > 0, "all on it are acknowledged")
    assert {packet.id for packet in second.received(PUBACK)} == set(range(1, second.last_id + 1))


# Exceptions in callbacks

CALLBACKS = "pre_connect connect subscribe disconnect publish message"


@pytest.mark.parametrize("name", CALLBACKS.split())
def test_an_exception_in_a_callback_costs_one_reconnect(tmp_path, monkeypatch, scripted, mend, name):
    """Each of them raises up to three times in a row."""
    raised = []

    def raising(self, *arguments):
        if len(raised) < 3:
            raised.append(name)
            raise RuntimeError(f"this is {name}")
        return getattr(Listener, f"_on_{name}")(self, *arguments)

    monkeypatch.setattr("pair.Listener", type("Raising", (Listener,), {f"_on_{name}": raising}))
    broker = scripted(publish=take_and_confirm)
    pair = Pair(tmp_path, broker.port)
    try:
        key = pair.create()
        for number in (1, 2, 3) if name == "disconnect" else ():
            pair.ready()
            broker.connection(number).close()
            wait_until(lambda: pair.listener.problem, "it says that it is not connected", 6)
            broker.connection(number + 1)
        pair.settled(key, seconds=30)
        assert raised
        mend(broker, pair)
    finally:
        pair.stop()
