"""A broker's limits (MQTT 5, section 3.2.2.3): the listener keeps them, and everything settles."""

import time
from contextlib import suppress

import pytest

from mqtt_listener import SUBSCRIPTIONS, UNACKNOWLEDGED
from programs import wait_until
from scripted import (
    CONNECT,
    PINGREQ,
    QUESTION,
    STATUS,
    SUBSCRIBE,
    connack,
    in_turn,
    puback,
    suback,
    take_and_confirm,
)


class Counting:
    """Takes questions after a while and confirms them; `most` is how many it held without a PUBACK."""

    def __init__(self, limit: int):
        self.limit, self.held, self.most, self.seen = limit, [], 0, 0

    def __call__(self, connection, packet) -> None:
        self.seen += 1
        self.held.append(packet)
        self.most = max(self.most, len(self.held))
        assert len(self.held) <= self.limit, "more unacknowledged than allowed"
        if len(self.held) == self.limit or self.seen >= 400:
            held, self.held = self.held, []
            for question in held:
                take_and_confirm(connection, question)


@pytest.mark.parametrize("limit", [1, 2, 10, 20, 21, 65535])
def test_receive_maximum_is_kept_and_all_of_400_settle(start, scripted, limit):
    counting = Counting(min(limit, 20))
    broker = scripted(connect=connack(ReceiveMaximum=limit), publish=counting)
    pair = start(broker.port, validation_retry=30)
    pair.ready()
    for _ in range(400):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 400, "all are settled", 30)
    assert counting.most == min(limit, 20)
    assert len(broker.connections) == 1


def test_a_limit_is_not_carried_into_the_next_connection(start, scripted):
    narrow, wide = Counting(1), Counting(20)
    broker = scripted(
        connect=in_turn(connack(ReceiveMaximum=1), connack()),
        publish=lambda connection, packet: (narrow if connection is broker.connections[0] else wide)(
            connection, packet
        ),
    )
    pair = start(broker.port, validation_retry=30)
    pair.ready()
    pair.settled(pair.create())
    broker.connection().close()
    pair.says("was lost")
    for _ in range(400):
        pair.create_later()
    wait_until(lambda: wide.most == 20, "the window is wider", 15)
    assert narrow.most == 1


def test_with_maximum_qos_0_all_of_400_settle(start, scripted):
    broker = scripted(connect=connack(MaximumQoS=0), subscribe=suback(0, 0), publish=take_and_confirm)
    pair = start(broker.port)
    pair.ready()
    for _ in range(400):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 400, "all are settled", 30)
    assert {packet.qos for packet in broker.connection().published(QUESTION)} == {0}


def test_a_packet_size_below_a_question_is_said(start, scripted, mend):
    broker = scripted(connect=connack(MaximumPacketSize=100))
    pair = start(broker.port)
    pair.says("takes 100 bytes; a question needs up to 512", seconds=6)
    pair.create()
    broker.connection(3)
    assert not any(connection.published(QUESTION) for connection in broker.connections)
    mend(broker, pair)


def test_a_question_fits_into_the_packet_size_that_is_asked_for(start, scripted):
    broker = scripted(connect=connack(MaximumPacketSize=512), publish=take_and_confirm)
    pair = start(broker.port)
    pair.ready()
    pair.settled(pair.create())
    assert broker.connection().published(QUESTION)[0].size < 512


def test_without_shared_subscriptions_a_broker_cannot_be_used(start, scripted, mend):
    broker = scripted(connect=connack(SharedSubscriptionAvailable=0))
    pair = start(broker.port, validation_timeout=2)
    pair.says("does not offer shared subscriptions", seconds=6)
    pair.create()
    began = time.monotonic()
    broker.connection(3)
    assert time.monotonic() - began < 6
    assert not any(connection.received(SUBSCRIBE) for connection in broker.connections)
    assert pair.count("PENDING") == 1
    mend(broker, pair)


def test_what_the_service_asks_for(start, scripted):
    """It starts a clean session each time, and bounds the verdicts that it has not acknowledged."""
    broker = scripted()
    pair = start(broker.port)
    for number in (1, 2):
        pair.ready()
        (connect,) = broker.connection(number).received(CONNECT)
        assert (connect.clean_start, connect.will) == (True, None)
        assert connect.properties == {"ReceiveMaximum": UNACKNOWLEDGED}
        broker.connection(number).close()
        pair.says("was lost")


def test_properties_that_change_nothing_for_us(start, scripted):
    properties = {"AssignedClientIdentifier": "another", "SessionExpiryInterval": 0, "TopicAliasMaximum": 9}
    properties |= {"SharedSubscriptionAvailable": 1, "UserProperty": [("a", "b"), ("a", "b")]}
    properties |= {"SubscriptionIdentifierAvailable": 0, "WildcardSubscriptionAvailable": 1}
    broker = scripted(
        connect=connack(ReasonString="hello", ServerReference="x", **properties), publish=take_and_confirm
    )
    pair = start(broker.port)
    pair.ready()
    pair.settled(pair.create())
    assert broker.connection().received(CONNECT)[0].client_id.startswith("energy2go-")


@pytest.mark.parametrize("seconds", [0, 1, 600, 65535])
def test_a_server_keep_alive_is_a_limit_and_lasts_for_its_connection(start, scripted, seconds):
    """With 0 or an hour, a frozen broker would not be noticed."""
    broker = scripted(connect=in_turn(connack(ServerKeepAlive=seconds), connack()))
    pair = start(broker.port)
    pair.ready()
    wait_until(lambda: broker.connection().received(PINGREQ), "it pings", 3 if seconds == 1 else 8)
    broker.connection().close()
    wait_until(lambda: broker.connection(2).received(CONNECT), "it connects again")
    assert broker.connection(2).received(CONNECT)[0].keepalive == 5


@pytest.mark.parametrize("line", ["max_inflight_messages 1", "max_qos 0", "retain_available false"])
def test_a_limited_mosquitto(running_with, line):
    """The real broker, service and equipment."""
    broker, service = running_with(line)
    retains = "retain" not in line

    def ready() -> bool:
        with suppress(OSError):
            answer = service.get("/readyz")
            expected = {"validator": "online"} if retains else "unknown"
            return answer.status == 200 and answer.json["equipment"] == expected
        return False

    wait_until(ready, "the whole job can be done", 10)
    service.post("/stations", {"description": "Teste"})
    keys = [service.post("/transactions", {"station_id": 1}).json["id"] for _ in range(60)]
    settled = lambda: service.get("/transactions?status=PENDING").json["items"] == []  # noqa: E731
    wait_until(settled, "all are settled", 20)
    assert len(keys) == 60
    assert service.get("/transactions?status=EXPIRED").json["items"] == []
    broker.stop()
    wait_until(lambda: service.get("/readyz").status == 503, "readyz says it", 6)
    broker.start()
    wait_until(ready, "the whole job can be done again", 6)


@pytest.mark.parametrize("missing", ["RetainAvailable", "WildcardSubscriptionAvailable"])
def test_without_status_topics_the_service_is_ready_and_the_equipment_unknown(
    service_with, scripted, missing
):
    broker = scripted(connect=connack(**{missing: 0}), publish=take_and_confirm)
    service = service_with(broker)
    wait_until(lambda: service.get("/readyz").status == 200, "it is ready", 10)
    assert service.get("/readyz").json["equipment"] == "unknown"
    topics = broker.connection().received(SUBSCRIBE)[0].topics
    assert topics == [
        topic for topic, _ in SUBSCRIPTIONS if missing == "RetainAvailable" or "+" not in topic
    ]
    broker.connection().publish(STATUS + "validator", b"online")
    service.post("/stations", {"description": "Teste"})
    answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=10")
    assert answer.json["status"] == "COMPLETED"


def test_the_first_connection_after_a_refused_publish_is_at_once(start, scripted):
    """A refusal costs a second, not a growing delay."""
    broker = scripted(publish=puback(0x97))
    pair = start(broker.port)
    pair.ready()
    pair.create()
    broker.connection(2)
    began = time.monotonic()
    broker.connection(4)
    assert 1 < time.monotonic() - began < 5
