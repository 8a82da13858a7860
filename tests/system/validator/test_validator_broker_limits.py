"""The real equipment: it keeps to what a broker grants and allows."""

import time

import pytest

from programs import wait_until
from scripted import (
    ANSWER,
    CONNECT,
    PINGREQ,
    PUBACK,
    PUBLISH,
    QUESTION,
    STATUS,
    SUBSCRIBE,
    connack,
    in_turn,
    nothing,
)
from witness import GOOD_ID, Witness, answered, ask, ids, lines, online, plain_build


def test_it_introduces_itself(run, scripted):
    broker = scripted()
    run(broker, online=True)
    connection = online(broker)
    (connect,), (subscribe,) = connection.received(CONNECT), connection.received(SUBSCRIBE)
    assert (connect.client_id, connect.keepalive, connect.clean_start) == ("validator", 5, True)
    will = connect.will
    assert (will.topic, will.payload, will.qos, will.retain) == (STATUS + "validator", b"offline", 1, True)
    assert subscribe.topics == ["$share/validators/" + QUESTION]
    (status,) = connection.received(PUBLISH)
    assert (status.payload, status.qos, status.retain) == (b"online", 1, True)


def test_it_is_online_only_once_the_subscription_is_granted(run, scripted):
    broker = scripted(subscribe=nothing)
    validator = run(broker)
    connection = broker.connection()
    wait_until(lambda: connection.received(SUBSCRIBE), "it subscribes")
    ask(connection, [GOOD_ID])
    wait_until(lambda: connection.received(PUBACK), "it has received a question")
    assert connection.received(PUBLISH) == []
    assert "is online" not in validator.said()
    connection.suback(connection.received(SUBSCRIBE)[0].id, [1])
    wait_until(lambda: answered(connection) == [GOOD_ID], "it answers")
    assert connection.received(PUBLISH)[0].payload == b"online"


@pytest.mark.parametrize("codes", [[0], [1], [1, 1, 1], [1] * 200])
def test_a_suback_may_have_any_number_of_codes(run, scripted, codes):
    broker = scripted(subscribe=lambda connection, packet: connection.suback(packet.id, codes))
    run(broker, online=True)
    ask(online(broker), [GOOD_ID])
    wait_until(lambda: answered(broker.connection()) == [GOOD_ID], "it answers")


@pytest.mark.parametrize("codes", [[], [0x87], [1, 0x87]])
def test_a_suback_that_does_not_grant_is_a_refusal(run, scripted, codes):
    broker = scripted(subscribe=lambda connection, packet: connection.suback(packet.id, codes))
    validator = run(broker)
    broker.connection(2)
    refuses = "the broker refuses the subscription: "
    # libmosquitto 2.0.11 refuses a SUBACK without a code itself.
    empty = (f"{refuses}no reason code", "the broker sent something that libmosquitto does not accept")
    assert lines(validator)[0].startswith(empty if not codes else f"{refuses}Not authorized")
    assert broker.connection().received(PUBLISH) == []


@plain_build
@pytest.mark.parametrize(("late", "seconds"), [("connect", 5), ("subscribe", 10)])
def test_it_waits_for_connack_and_for_suback(run, scripted, late, seconds):
    """A late answer is an answer; without one it says so and connects again."""
    broker = scripted(**{late: nothing})
    validator = run(broker)
    started = time.monotonic()
    connection = broker.connection()
    wait_until(lambda: time.monotonic() > started + 0.7 * seconds, "it has waited for most of that")
    assert not connection.closed
    if late == "connect":
        connection.connack()
    else:
        connection.suback(connection.received(SUBSCRIBE)[0].id, [1])
    online(broker)
    connection.close()
    started = time.monotonic()
    wait_until(lambda: lines(validator)[-1:] == ["the broker does not answer"], "it says so", 20)
    assert seconds - 0.5 < time.monotonic() - started < seconds + 4


def test_without_shared_subscriptions_a_broker_cannot_be_used(run, scripted):
    broker = scripted(connect=in_turn(connack(SharedSubscriptionAvailable=0), connack()))
    validator = run(broker)
    online(broker, 2)
    assert lines(validator) == ["the broker does not offer shared subscriptions, which we need"]
    assert broker.connection().received(SUBSCRIBE) == broker.connection().received(PUBLISH) == []


def test_properties_that_change_nothing_for_it(run, scripted):
    properties = {"SessionExpiryInterval": 9, "TopicAliasMaximum": 9}
    properties |= {"WildcardSubscriptionAvailable": 0, "SubscriptionIdentifierAvailable": 0}
    properties |= {"ReasonString": "hello", "ServerReference": "x", "ResponseInformation": "y"}
    broker = scripted(connect=connack(SharedSubscriptionAvailable=1, ServerKeepAlive=1, **properties))
    run(broker)
    connection = online(broker)
    ask(connection, [GOOD_ID])
    wait_until(lambda: answered(connection) == [GOOD_ID], "it answers")
    wait_until(lambda: len(connection.received(PINGREQ)) > 1, "it pings as often as the broker wants", 4)


@plain_build
def test_a_broker_that_never_acknowledges_is_left(run, scripted):
    broker = scripted(publish=nothing)
    validator = run(broker)
    connection = online(broker)
    ask(connection, ids(50))
    wait_until(
        lambda: "the broker does not acknowledge what is published" in validator.said(), "it says so", 20
    )
    assert answered(connection) == ids(50)[:19]  # `online` is the twentieth


@pytest.mark.parametrize("limit", [1, 3, 20, 65535])
def test_it_respects_receive_maximum(run, scripted, limit):
    broker = scripted(connect=connack(ReceiveMaximum=limit), publish=nothing)
    run(broker)
    connection = online(broker)
    ask(connection, ids(60))
    acknowledged, total = 0, 61
    while acknowledged < total:
        wanted = min(acknowledged + min(limit, 20), total)
        wait_until(
            lambda wanted=wanted: len(connection.received(PUBLISH)) >= wanted, f"{wanted} are published"
        )
        assert len(connection.received(PUBLISH)) == wanted
        connection.puback(connection.received(PUBLISH)[acknowledged].id)
        acknowledged += 1
    assert answered(connection) == ids(60)


def test_it_respects_maximum_qos(run, scripted):
    """The first CONNECT has a Will with QoS 1, which such a broker refuses (MQTT 5, 3.2.2.3.4)."""
    broker = scripted(connect=in_turn(connack(0x9B), connack(MaximumQoS=0)))
    validator = run(broker)
    connection = online(broker, 2)
    ask(connection, ids(100))
    wait_until(lambda: answered(connection) == ids(100), "all are answered")
    assert {packet.qos for packet in connection.received(PUBLISH)} == {0}
    will = connection.received(CONNECT)[0].will
    assert (will.payload, will.qos, will.retain) == (b"offline", 0, True)
    assert lines(validator) == ["the broker refuses the connection: QoS not supported"]


@pytest.mark.parametrize("properties", [{}, {"RetainAvailable": 0}])
def test_it_works_without_retained_messages(run, scripted, properties):
    broker = scripted(connect=in_turn(connack(0x9A), connack(**properties)))
    run(broker, online=True)
    connection = broker.connection(2)
    assert connection.received(CONNECT)[0].will is None
    ask(connection, ids(30))
    wait_until(lambda: answered(connection) == ids(30), "all are answered")
    assert len(connection.received(PUBLISH)) == 30
    assert not any(packet.retain for packet in connection.received(PUBLISH))
    connection.close()
    wait_until(lambda: broker.connection(3).received(CONNECT), "it connects again")
    assert broker.connection(3).received(CONNECT)[0].will is not None


def test_it_respects_maximum_packet_size(run, scripted):
    """An answer that is too large does not hold up the others."""
    broker = scripted(connect=connack(MaximumPacketSize=300), publish=lambda c, packet: c.puback(packet.id))
    validator = run(broker, VALIDATOR_CONFIRM_RATE="1")
    connection = online(broker)
    transactions = ids(400)
    for size, transaction in enumerate(transactions):
        ask(connection, [transaction], CorrelationData=b"x" * size)
    ask(connection, [GOOD_ID])
    wait_until(lambda: answered(connection)[-1:] == [GOOD_ID], "the last one is answered")
    sizes = [packet.size for packet in connection.published(ANSWER)]
    assert 297 <= max(sizes) <= 300
    assert answered(connection)[:-1] == transactions[: len(sizes) - 1]
    assert "an answer is larger than the broker's Maximum Packet Size" in validator.said()


@pytest.mark.parametrize("line", ["max_qos 0", "max_qos 1", "retain_available false", "max_packet_size 300"])
def test_it_works_with_a_limited_mosquitto_and_with_the_next_one(run, another_broker, line):
    broker = another_broker(line)
    broker.environment_of_clients |= {"VALIDATOR_USERNAME": ""}
    validator = run(broker)
    for count in (1, 2):
        wait_until(lambda count=count: validator.said().count("is online") == count, "it is online")
        with Witness(broker) as witness:
            witness.qos = 0 if line == "max_qos 0" and count == 1 else 1
            assert len(witness.verdicts(ids(100))) == 100
            if count == 2:
                witness.sees("online")
        broker.stop()
        if count == 1:
            another_broker(port=broker.port)
    assert "does not retain" in validator.said() or "retain" not in line
