"""The real equipment: it says why it is not online."""

import time
from pathlib import Path

import pytest

from programs import Broker, free_port, wait_until
from scripted import CONNACK, CONNECT, DISCONNECT, PUBACK, PUBLISH, SUBSCRIBE, Connection, nothing, packet
from witness import answered, ask, ids, lines, online, plain_build, stops_at_once


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answers with something that is not MQTT 5"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "answers with something that is not MQTT 5"),
        (packet(CONNACK, b"\0\0"), "answers with something that is not MQTT 5"),  # MQTT 3.1.1: accepted
        (packet(CONNACK, b"\0\1"), "answers with something that is not MQTT 5"),  # MQTT 3.1.1: wrong version
        (
            packet(CONNACK, b"\0\5"),
            "answers with something that is not MQTT 5",
        ),  # MQTT 3.1.1: not authorized
        (packet(CONNACK, b"\0\5\0"), "answers with something that is not MQTT 5"),
        (packet(CONNACK, b"\0\x84\0"), "answers with something that is not MQTT 5"),
        (packet(CONNACK, b"\0\x87\0"), "refuses the connection: Not authorized"),
        (packet(CONNACK, b"\0\x88\0"), "refuses the connection: Server unavailable"),
        (
            packet(CONNACK, b"\0\0\0") + packet(DISCONNECT, b"\x8b\0"),
            "closed the connection: Server shutting down",
        ),
        (packet(CONNACK, b"\0\0\0") + packet(DISCONNECT, b"\0"), "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_each_way_to_be_disconnected_has_a_sentence(run, scripted, says, sentence):
    """And the sentence is gone with the connection: the next one is closed without a word."""

    def connect(connection: Connection, packet) -> None:
        connection.send(says if len(broker.connections) == 1 else b"")
        if b"-" not in says:  # an SSH server stays, and waits
            connection.close()

    broker = scripted(connect=connect)
    validator = run(broker)
    broker.connection(3)
    if b"-" not in says:
        expected = [f"the broker {sentence}", "the broker closed the connection"]
        assert lines(validator) == expected[: 1 if sentence == "closed the connection" else 2]
    assert lines(validator)[0] == f"the broker {sentence}"


def test_a_refused_answer_is_told_and_the_connection_stays(run, scripted):
    broker = scripted(publish=lambda connection, packet: connection.puback(packet.id, 0x87))
    validator = run(broker)
    connection = online(broker)
    ask(connection, ids(60))
    wait_until(lambda: answered(connection) == ids(60), "all are sent")
    assert validator.said().count("the broker refuses what is published: Not authorized\n") == 1
    assert not connection.closed


def test_one_whose_id_is_taken_says_that_each_needs_its_own(run, scripted):
    broker = scripted(subscribe=lambda connection, packet: connection.disconnect(0x8E))
    validator = run(broker, VALIDATOR_ID="twin")
    broker.connection(2)
    (line,) = lines(validator)
    assert line.endswith("with the same id, VALIDATOR_ID=twin; each needs its own")


def test_two_with_one_id_take_turns(run, broker):
    """Mosquitto 2.0.11 closes the connection of the first without a word, later ones with the reason."""
    two = [run(broker, VALIDATOR_ID="twin", name=name) for name in ("one", "other")]
    for validator in two:
        wait_until(lambda validator=validator: lines(validator), "it says that it was disconnected")
    wait_until(lambda: sum(validator.said().count("is online") for validator in two) >= 4, "they take turns")


def test_nothing_is_carried_into_the_next_connection(run, scripted):
    """What waited is sent; what was not acknowledged is not, because the service asks again."""
    broker = scripted(publish=nothing)
    run(broker)
    ask(online(broker), ids(40))
    wait_until(lambda: len(answered(broker.connection())) == 19, "the window is full")
    wait_until(lambda: len(broker.connection().received(PUBACK)) == 40, "all questions are received")
    broker.connection().close()
    connection = online(broker, 2)
    wait_until(lambda: len(answered(connection)) == 19, "the window is full again")
    assert answered(connection) == ids(40)[19:38]
    assert not any(packet.dup for packet in connection.received(PUBLISH))
    connection.reset()
    wait_until(lambda: answered(online(broker, 3)) == ids(40)[38:], "the rest is sent")


@pytest.mark.parametrize("state", ["connecting", "subscribing", "blocked"])
def test_it_stops_in_every_state(run, scripted, state):
    silent = {"connecting": {"connect": nothing}, "subscribing": {"subscribe": nothing}, "blocked": {}}[
        state
    ]
    broker = scripted(**silent)
    validator = run(broker, VALIDATOR_VERBOSE="1")
    connection = broker.connection()
    if state == "connecting":
        wait_until(lambda: connection.received(CONNECT), "it connects")
    if state == "subscribing":
        wait_until(lambda: connection.received(SUBSCRIBE), "it subscribes")
    if state == "blocked":
        online(broker)
        connection.may_read.clear()
        ask(connection, ids(100), CorrelationData=b"x" * 1024)
        wait_until(lambda: len(validator.output.read_text().splitlines()) > 19, "its window is full")
    assert stops_at_once(validator)


def test_it_leaves_with_its_will(run, scripted):
    broker = scripted()
    validator = run(broker)
    connection = online(broker)
    assert stops_at_once(validator)
    wait_until(lambda: connection.received(DISCONNECT), "it says goodbye")
    assert connection.received(DISCONNECT)[0].reason == 4


def test_the_first_attempts_follow_each_other_quickly(run, scripted, tmp_path):
    port = free_port()
    validator = run(Broker(tmp_path, port=port))
    wait_until(lambda: "cannot be reached: Connection refused" in validator.said(), "it has tried")
    started = time.monotonic()
    online(scripted(port=port))
    assert time.monotonic() - started < 0.9


def test_a_host_without_an_address_is_named(run, tmp_path):
    validator = run(Broker(tmp_path), MQTT_HOST="no-such-host.invalid")
    wait_until(lambda: lines(validator), "it has tried")
    assert lines(validator)[0].startswith("the broker cannot be reached: ")


@plain_build
def test_it_needs_less_than_6_mb(run, broker, witness):
    validator = run(broker, online=True)
    for turn in range(3):
        assert len(witness.verdicts(ids(1000, seed=turn))) == 1000
    status = Path(f"/proc/{validator.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 6 * 1024
