"""The real equipment and brokers of every kind: it says why it is not online, and keeps to their limits."""

from contextlib import suppress

import pytest

from brokers import SAYS, WORKS
from programs import wait_until
from scripted import (
    ANSWER,
    CONNECT,
    PUBACK,
    PUBLISH,
    QUESTION,
    STATUS,
    SUBSCRIBE,
    connack,
    disconnect,
    in_turn,
    nothing,
    puback,
)
from witness import GOOD_ID, answered, ask, ids, lines, online, stops_at_once

# What it says


def test_it_says_what_each_broker_does_and_answers_once_it_behaves(meets):
    """All of them at once, because some take ten seconds."""
    met = {name: meets(False, name, **row[0]) for name, row in SAYS.items() if row[2]}
    for name, (validator, _, _) in met.items():
        wait_until(lambda one=validator, words=SAYS[name][2]: words in one.said(), name)
    for _, broker, _ in met.values():
        broker.becomes()

    def answers(broker) -> bool:
        connection = broker.newest
        if connection.published(STATUS + "validator") and not connection.closed:
            with suppress(OSError):  # it may still be the last one
                ask(connection, [GOOD_ID])
        return GOOD_ID in answered(connection)

    for name, (_, broker, _) in met.items():
        wait_until(lambda broker=broker: answers(broker), f"it answers after {name}")


def test_one_whose_id_is_taken_says_that_each_needs_its_own(meets):
    validator, broker, _ = meets(False, subscribe=disconnect(0x8E))
    broker.connection(2)
    wait_until(lambda: lines(validator), "it says so")
    assert lines(validator)[0].endswith("with the same id, VALIDATOR_ID=validator; each needs its own")


def test_a_refused_answer_is_told_once_and_the_connection_stays(meets):
    validator, _, connection = meets(publish=puback(0x87))
    ask(connection, ids(60))
    wait_until(lambda: answered(connection) == ids(60), "all are sent")
    refused = "the broker refuses what is published: Not authorized\n"
    wait_until(lambda: refused in validator.said(), "it says so")
    assert validator.said().count(refused) == 1
    assert not connection.closed


# What it keeps to


def test_it_introduces_itself(meets):
    _, _, connection = meets()
    (connect,), (subscribe,) = connection.received(CONNECT), connection.received(SUBSCRIBE)
    assert (connect.client_id, connect.keepalive, connect.clean_start) == ("validator", 5, True)
    assert connect.will == (STATUS + "validator", b"offline", 1, True)
    assert subscribe.topics == ["$share/validators/" + QUESTION]
    (status,) = connection.received(PUBLISH)
    assert (status.payload, status.qos, status.retain) == (b"online", 1, True)


def test_it_is_online_only_once_the_subscription_is_granted(meets):
    validator, _, connection = meets(False, subscribe=nothing)
    wait_until(lambda: connection.received(SUBSCRIBE), "it subscribes")
    ask(connection, [GOOD_ID])
    wait_until(lambda: connection.received(PUBACK), "it has received a question")
    assert connection.received(PUBLISH) == []
    assert "is online" not in validator.said()
    connection.suback(connection.received(SUBSCRIBE)[0].id, [1])
    wait_until(lambda: answered(connection) == [GOOD_ID], "it answers")
    assert connection.received(PUBLISH)[0].payload == b"online"


def test_it_answers_with_brokers_that_work_in_another_way(meets):
    """The service ignores a SUBACK without codes; the equipment takes it for a refusal."""
    rows = {
        name: row | {"publish": puback()} for name, row in WORKS.items() if name != "SUBACK with no code"
    }
    met = {name: meets(False, name, **row) for name, row in rows.items()}
    for name, (validator, _, connection) in met.items():
        wait_until(lambda one=validator: "is online" in one.said(), f"{name}: it is online")
        ask(connection, ids(100))
    for name, (_, _, connection) in met.items():
        wait_until(lambda one=connection: answered(one) == ids(100), f"{name}: all are answered")
        assert {packet.qos for packet in connection.published(ANSWER)} == {0 if "QoS" in name else 1}


@pytest.mark.parametrize("limit", [1, 65535])
def test_it_respects_receive_maximum(meets, limit):
    _, _, connection = meets(connect=connack(ReceiveMaximum=limit), publish=nothing)
    ask(connection, ids(60))
    acknowledged, total = 0, 61
    while acknowledged < total:
        wanted = min(acknowledged + min(limit, 20), total)
        sent = lambda wanted=wanted: len(connection.received(PUBLISH)) >= wanted  # noqa: E731
        wait_until(sent, f"{wanted} are published")
        assert len(connection.received(PUBLISH)) == wanted
        connection.puback(connection.received(PUBLISH)[acknowledged].id)
        acknowledged += 1
    assert answered(connection) == ids(60)


@pytest.mark.parametrize(("refuses", "limits", "qos"), [(0x9B, {"MaximumQoS": 0}, 0), (0x9A, {}, None)])
def test_it_changes_its_will_for_a_broker_that_refuses_it(meets, refuses, limits, qos):
    """A broker without QoS 1 or without retained messages refuses such a Will (MQTT 5, 3.2.2.3)."""
    validator, broker, _ = meets(False, connect=in_turn(connack(refuses), connack(**limits)))
    wait_until(lambda: "is online" in validator.said(), "it is online")
    connection = broker.connection(2)
    (connect,) = connection.received(CONNECT)
    assert connect.will == (None if qos is None else (STATUS + "validator", b"offline", qos, True))
    ask(connection, ids(30))
    wait_until(lambda: answered(connection) == ids(30), "all are answered")
    if qos is None:
        assert not any(packet.retain for packet in connection.received(PUBLISH))
        connection.close()
        wait_until(lambda: broker.connection(3).received(CONNECT), "it connects again")
        assert broker.connection(3).received(CONNECT)[0].will


def test_it_respects_maximum_packet_size(meets):
    """An answer that is too large does not hold up the others."""
    validator, _, connection = meets(connect=connack(MaximumPacketSize=300))
    transactions = ids(300)
    for size, transaction in enumerate(transactions):
        ask(connection, [transaction], CorrelationData=b"x" * size)
    ask(connection, [GOOD_ID])
    wait_until(lambda: answered(connection)[-1:] == [GOOD_ID], "the last one is answered")
    sizes = [packet.size for packet in connection.published(ANSWER)]
    assert 297 <= max(sizes) <= 300
    assert answered(connection)[:-1] == transactions[: len(sizes) - 1]
    assert "an answer is larger than the broker's Maximum Packet Size" in validator.said()


def test_nothing_is_carried_into_the_next_connection(meets):
    """What waited is sent; what was not acknowledged is not, because the service asks again."""
    _, broker, connection = meets(publish=nothing)
    ask(connection, ids(40))
    wait_until(lambda: len(answered(connection)) == 19, "the window is full")  # `online` is the twentieth
    wait_until(lambda: len(connection.received(PUBACK)) == 40, "all questions are received")
    connection.close()
    connection = online(broker, 2)
    wait_until(lambda: len(answered(connection)) == 19, "the window is full again")
    assert answered(connection) == ids(40)[19:38]
    assert not any(packet.dup for packet in connection.received(PUBLISH))
    connection.close()
    wait_until(lambda: answered(online(broker, 3)) == ids(40)[38:], "the rest is sent")


# How it leaves


@pytest.mark.parametrize("state", ["connecting", "subscribing", "blocked"])
def test_it_stops_in_every_state(meets, state):
    silent = {"connecting": {"connect": nothing}, "subscribing": {"subscribe": nothing}}.get(state, {})
    validator, _, connection = meets(state == "blocked", **silent)
    if state == "blocked":
        connection.may_read.clear()
        ask(connection, ids(100), CorrelationData=b"x" * 1024)
        wait_until(lambda: len(validator.output.read_text().splitlines()) > 19, "its window is full")
    else:
        kind = CONNECT if state == "connecting" else SUBSCRIBE
        wait_until(lambda: connection.received(kind), f"it is {state}")
    assert stops_at_once(validator)
