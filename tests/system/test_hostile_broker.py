"""Hostile messages over a real broker leave the service working."""

import unicodedata
from collections import Counter
from uuid import UUID

from hypothesis import HealthCheck, given, settings

import mqtt_listener
from hostile import PACKET, Message, judged, messages
from peer import Peer
from programs import wait_until
from schemas import Status


def some(number: int) -> list[Message]:
    """So many messages that the broker accepts, the same ones in every run."""
    found = []

    @settings(max_examples=number, suppress_health_check=list(HealthCheck))
    @given(messages)
    def find(message):
        # The broker's limits of a packet and of a topic (MQTT 5, sections 1.5.4 and 4.7).
        short = len(message.topic.encode()) + len(message.template) < PACKET - 400
        if short and not {unicodedata.category(character) for character in message.topic} & {"Cc", "Cn"}:
            found.append(message)

    find()
    return found


def test_hostile_messages_over_the_broker_leave_the_service_at_work(service, broker, equipment):
    started, hostile = service(VALIDATION_RETRY="1"), some(1000)
    assert len(hostile) > 500
    assert started.post("/stations", {"description": "Teste"}).json["id"] == 1
    created = [started.post("/transactions", {"station_id": 1}).json["id"] for _ in range(5)]
    keys = [UUID(key) for key in created]
    status = lambda key: started.get(f"/transactions/{key}").json["status"]  # noqa: E731
    answers = Counter()
    with Peer(broker) as flood:
        flood.client.on_publish = lambda client, userdata, mid, code, properties: answers.update([str(code)])
        last = Message(mqtt_listener.VERDICTS, b'{"transaction_id": "{key}", "status": "COMPLETED"}', 4, "")
        for message in [*hostile, last]:
            flood.client.publish(message.topic, message.payload(keys), qos=1, retain=message.retained)
        wait_until(lambda: answers.total() > len(hostile), "the broker has taken them")
        assert answers.keys() == {"Success"}
        assert flood.lost == []
    wait_until(lambda: status(created[4]) == "COMPLETED", "everything before it was dealt with")
    stored, _ = judged(hostile, [Status.PENDING] * 4)
    assert [status(key) for key in created[:4]] == stored
    equipment()
    answer = started.post("/transactions", {"station_id": 1}, Prefer="wait=20")
    assert answer.json["status"] in ("COMPLETED", "ERROR")
    assert len(started.get("/readyz").json["equipment"]) <= mqtt_listener.EQUIPMENT
    started.stop()
    started.start()  # the retained messages come again
    wait_until(started.ready, "the service is ready")
    assert [status(key) for key in created[:4]] == stored
