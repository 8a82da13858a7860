"""Hostile messages over a real broker leave the service working."""

import json
import re
import time
import unicodedata
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings

import mqtt_listener
from hostile import LINE, LINES, PACKET, Message, judged, messages
from mqtt_listener import STATUSES, VERDICTS
from peer import Peer
from programs import wait_until
from schemas import Status


class Flood(Peer):
    """Equipment that publishes without waiting.

    `answers` counts the broker's answers, `lost` says why it was disconnected.
    """

    def __init__(self, broker):
        self.answers, self.lost = Counter(), []
        super().__init__(broker)
        self.client.on_publish = lambda client, userdata, mid, code, properties: self.answers.update(
            [str(code)]
        )
        self.client.on_disconnect = lambda client, userdata, flags, code, properties: self.lost.append(
            str(code)
        )

    def send(self, topic: str, payload: bytes, retained: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retained)

    def answered(self, number: int) -> None:
        wait_until(lambda: self.answers.total() >= number, f"the broker has taken {number}")


def some(strategy, number: int) -> list:
    """`number` examples, the same ones in every run."""
    found = []

    @settings(max_examples=number, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def find(example):
        found.append(example)

    find()
    return found


def fits(message: Message) -> bool:
    """True if the broker accepts this packet length and this topic (MQTT 5, sections 1.5.4 and 4.7)."""
    short = len(message.topic.encode()) + len(message.template) < PACKET - 400
    return short and not {unicodedata.category(character) for character in message.topic} & {"Cc", "Cn"}


def filled(topic: str, payload: bytes, length: int) -> bytes:
    """The payload, filled up with blanks to this packet length (MQTT 5, section 3.3)."""
    header = (
        1 + 3 + 2 + len(topic) + 2 + 1
    )  # type, remaining length, topic, packet identifier, no properties
    return payload.ljust(length - header)


def verdict(key: str, status: str = "COMPLETED") -> bytes:
    return json.dumps({"transaction_id": key, "status": status}).encode()


def assert_bounded(said: str, seconds: float) -> None:
    """Check that the log has few lines, and that each one is short and printable."""
    lines = said.splitlines()
    assert [
        line
        for line in lines
        if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [a-z._]+: ", line)
    ] == []
    assert [line for line in lines if not line.isprintable() or len(line) > LINE] == []
    assert said.count("\n") == len(lines)
    for kind in ("ignored on", "Invalid request"):
        assert sum(kind in line for line in lines) <= LINES * (seconds + 2)


@pytest.fixture
def started(service):
    """The service with one station."""
    started = service(VALIDATION_RETRY="1")
    assert started.post("/stations", {"description": "Teste"}).json["id"] == 1
    return started


def create(service) -> str:
    return service.post("/transactions", {"station_id": 1}).json["id"]


def status(service, key: str) -> str:
    return service.get(f"/transactions/{key}").json["status"]


def test_hostile_messages_over_the_broker_leave_the_service_at_work(started, broker, equipment):
    began = time.monotonic()
    hostile = [message for message in some(messages, 1000) if fits(message)]
    assert len(hostile) > 500
    created = [create(started) for _ in range(4)]
    keys = [UUID(key) for key in created]
    largest, last = create(started), create(started)
    with Flood(broker) as flood:
        for message in hostile:
            flood.send(message.topic, message.payload(keys), message.retained)
        for topic in (VERDICTS, f"{STATUSES}other"):
            flood.send(topic, filled(topic, b"x", PACKET))
        flood.send(VERDICTS, filled(VERDICTS, verdict(largest), PACKET))
        flood.send(VERDICTS, verdict(last))
        flood.answered(len(hostile) + 4)
        assert flood.answers.keys() == {"Success"}
        assert flood.lost == []
    wait_until(lambda: status(started, last) == "COMPLETED", "everything before it was dealt with")
    assert status(started, largest) == "COMPLETED"
    stored, _ = judged(hostile, [Status.PENDING] * 4)
    assert [status(started, key) for key in created] == stored

    equipment()
    answer = started.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    assert len(started.get("/readyz").json["equipment"]) <= mqtt_listener.EQUIPMENT
    # Retained messages come again.
    started.stop()
    started.start()
    wait_until(started.ready, "the service is ready")
    assert started.post("/transactions", {"station_id": 1}, Prefer="wait=20").json["status"] in (
        "COMPLETED",
        "ERROR",
    )
    assert [status(started, key) for key in created] == stored
    assert_bounded(started.said(), time.monotonic() - began)


@pytest.mark.parametrize("topic", [VERDICTS, f"{STATUSES}validator"])
def test_the_broker_refuses_what_is_longer_than_its_limit(started, broker, topic):
    key, last = create(started), create(started)
    with Flood(broker) as flood:
        # Mosquitto does not count the three bytes of the length field.
        flood.send(topic, filled(topic, verdict(key), PACKET + 4))
        wait_until(lambda: "Packet too large" in flood.lost, "the broker says so")
    with Flood(broker) as flood:
        flood.send(VERDICTS, verdict(last))
    wait_until(lambda: status(started, last) == "COMPLETED", "an answer goes through")
    assert status(started, key) == "PENDING"
    assert started.get("/readyz").json["equipment"] == {}
