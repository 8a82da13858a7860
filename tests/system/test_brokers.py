"""Brokers that misbehave or limit us: the service says why, and settles everything with the next one."""

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
from pair import Pair
from programs import wait_until
from scripted import (
    ANSWER,
    CONNACK,
    CONNECT,
    DISCONNECT,
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
    take_and_confirm,
)


@pytest.fixture(scope="module")
def broker():
    with ScriptedBroker() as broker:
        yield broker


@pytest.fixture(scope="module")
def shared(broker, tmp_path_factory):
    """A ledger and a listener for this file, which connects again at once."""
    pair = Pair(tmp_path_factory.mktemp("brokers"), broker.port, patient=False)
    yield pair
    pair.stop()


@pytest.fixture
def meets(shared, broker):
    """A function that puts another broker in this place: `meets(connect=connack(ReceiveMaximum=1))`."""

    def meets(**reactions) -> Pair:
        session = shared.listener.session
        broker.becomes(**{"publish": take_and_confirm} | reactions)
        wait_until(lambda: shared.listener.session > session, "it is subscribed")
        shared.unheard.clear()
        return shared

    return meets


@pytest.fixture
def pair(meets):
    """The pair of this file, connected to a broker that confirms everything."""
    return meets()


def verdict(key) -> bytes:
    return json.dumps({"transaction_id": str(key), "status": "COMPLETED"}).encode()


# What it says


def test_it_says_what_each_broker_does_and_settles_everything_once_it_behaves(start, scripted):
    """All of them at once, because some take ten seconds."""
    met = {}
    for name, (reactions, words, _) in SAYS.items():
        broker = scripted(**{"publish": take_and_confirm} | reactions)
        pair = start(broker.port, patient=False)
        met[name] = broker, pair, pair.create(), words
    for _, pair, _, words in met.values():
        pair.says(words)
    for broker, *_ in met.values():
        broker.becomes(publish=take_and_confirm)
    for _, pair, key, _ in met.values():
        pair.settled(key)
        pair.ready()


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
def test_a_broker_that_works_in_another_way_settles_everything(meets, broker, name):
    pair = meets(**WORKS[name])
    connection = broker.newest
    for key in [pair.create() for _ in range(10)]:
        pair.settled(key)
    assert broker.newest is connection
    questions = connection.published(QUESTION)
    assert {question.qos for question in questions} == {0 if "QoS" in name else 1}
    assert max(question.size for question in questions) < 512
    assert pair.listener.knows_equipment == (name not in ("CONNACK: no retain", "CONNACK: no wildcards"))
    topics = [topic for topic, _ in SUBSCRIPTIONS if "wildcards" not in name or "+" not in topic]
    assert connection.received(SUBSCRIBE)[0].topics == topics


@pytest.mark.parametrize("limit", [1, 65535])
def test_receive_maximum_is_kept_and_all_of_400_settle(meets, limit):
    """The broker holds as many questions as it may get, and then takes and confirms them."""
    held, most, seen = [], min(limit, 20), []

    def hold(connection, packet) -> None:
        held.append(packet)
        seen.append(len(held))
        if len(held) == most or len(seen) >= 400:
            while held:
                take_and_confirm(connection, held.pop(0))

    pair = meets(connect=connack(ReceiveMaximum=limit), publish=hold)
    for _ in range(400):
        pair.create_later()
    wait_until(lambda: len(seen) >= 400 and not pair.count("PENDING"), "all are settled")
    assert max(seen) == most
    assert not pair.count("EXPIRED")


def test_it_starts_a_clean_session_each_time_and_bounds_what_it_has_not_acknowledged(meets, broker):
    for _ in range(2):
        meets()
        (connect,) = broker.newest.received(CONNECT)
        assert (connect.clean_start, connect.will) == (True, None)
        assert connect.client_id.startswith("energy2go-")
        assert connect.properties == {"ReceiveMaximum": UNACKNOWLEDGED}


def test_a_server_keep_alive_is_a_limit_and_lasts_for_its_connection(start, scripted):
    """With 0 or an hour, a frozen broker would not be noticed."""
    brokers = [scripted(connect=in_turn(connack(ServerKeepAlive=limit), connack())) for limit in (0, 65535)]
    for broker in brokers:
        start(broker.port, patient=False)
    for broker in brokers:
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


def test_what_a_broker_should_not_send_changes_nothing(pair, broker):
    connection, session = broker.newest, pair.listener.session
    for what, data in TOLERATED.items():
        connection.send(data * 3)
        pair.settled(pair.create())
        assert (broker.newest, pair.listener.session) == (connection, session), what


def test_a_broken_packet_costs_one_reconnect(meets, broker):
    pair = meets(publish=nothing)
    keys = []
    for what, data in BROKEN.items():
        connection, session = broker.newest, pair.listener.session
        keys.append(pair.create())
        wait_until(lambda one=connection: one.published(QUESTION), "it is asked")
        connection.send(data)
        wait_until(lambda before=session: pair.listener.session > before, what)
        assert broker.newest is broker.connections[broker.connections.index(connection) + 1]
    meets()
    for key in keys:
        pair.settled(key)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_verdict_may_come_with_any_qos_and_as_often_as_it_likes(meets, broker, qos):
    pair = meets(publish=lambda connection, packet: connection.puback(packet.id))
    key, connection, before = pair.create(), broker.newest, pair.ledger.counts["duplicate"]
    for _ in range(100):
        connection.publish(ANSWER, verdict(key), qos=qos)
        if qos == 2:
            connection.send(packet(6, connection.last_id.to_bytes(2, "big"), 2))  # PUBREL
    pair.settled(key)
    kind = {1: PUBACK, 2: 7}.get(qos)  # PUBCOMP
    wait_until(lambda: not kind or len(connection.received(kind)) == 100, "all are acknowledged")
    wait_until(lambda: pair.ledger.counts["duplicate"] == before + 99, "they are counted")


def test_verdicts_that_are_acknowledged_after_a_reconnect_go_nowhere(meets, broker, monkeypatch):
    """An acknowledgement must not reach the next connection, where its id may mean another message."""
    pair = meets(publish=nothing)
    key, first = pair.create(), broker.newest
    arrived, put = threading.Event(), pair.listener._put
    monkeypatch.setattr(pair.listener, "_put", lambda job: (put(job), arrived.set()))
    with pair.store.transaction():  # the ledger waits for its turn to write
        first.publish(ANSWER, verdict(key))
        assert arrived.wait(30)
        meets()
        second = broker.newest
    pair.settled(key)
    pair.settled(pair.create())
    wait_until(lambda: len(second.received(PUBACK)) == second.last_id > 0, "all on it are acknowledged")
    assert {packet.id for packet in second.received(PUBACK)} == set(range(1, second.last_id + 1))


CALLBACKS = "pre_connect connect subscribe disconnect publish message"


@pytest.mark.parametrize("name", CALLBACKS.split())
def test_an_exception_in_a_callback_costs_a_reconnect(pair, broker, monkeypatch, name):
    """Each of them raises up to three times in a row."""
    raised, usual = [], getattr(pair.listener, f"_on_{name}")

    def raising(*arguments):
        if len(raised) < 3:
            raised.append(name)
            raise RuntimeError(f"this is {name}")
        return usual(*arguments)

    monkeypatch.setattr(pair.listener, f"_on_{name}", raising)
    broker.newest.close()
    key = pair.create()
    pair.settled(key)
    wait_until(lambda: raised, "it has raised")
    pair.settled(pair.create())
    pair.ready()
    assert pair.listener.alive
