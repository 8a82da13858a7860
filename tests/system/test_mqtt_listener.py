"""The listener with a real Mosquitto: what it publishes, receives, and says about the connection."""

import json
import os
import signal
import socket
import threading
from uuid import UUID

import pytest

from mqtt_listener import QUESTIONS, STATUSES, VERDICTS, Listener
from peer import Peer
from programs import wait_until
from schemas import Status


@pytest.fixture
def pair(start, broker):
    pair = start(broker.port)
    pair.ready()
    return pair


@pytest.fixture
def peer(broker):
    """A client that plays the equipment."""
    with Peer(broker, QUESTIONS) as peer:
        yield peer


def verdict(key: UUID, status: str = "COMPLETED") -> bytes:
    return json.dumps({"transaction_id": str(key), "status": status}).encode()


def test_a_question_carries_what_the_contract_says(pair, peer):
    key = pair.create()
    message = wait_until(lambda: peer.messages and peer.messages[0], "the question")
    assert message.topic == QUESTIONS
    assert message.qos == 1
    assert not message.retain
    assert json.loads(message.payload) == {"transaction_id": str(key), "station_id": 1}
    assert message.properties.MessageExpiryInterval == 1
    assert message.properties.CorrelationData == key.bytes
    assert message.properties.ResponseTopic == VERDICTS
    assert message.properties.ContentType == "application/json"
    assert pair.listener._client.socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_verdict_is_acknowledged_only_after_its_commit(pair):
    key, seen = pair.create(), []
    done = threading.Event()

    def acknowledge():
        seen.append(pair.status(key))
        done.set()

    pair.listener.receive(VERDICTS, verdict(key), False, acknowledge)
    assert done.wait(60)
    assert seen == [Status.COMPLETED]


def test_an_unanswered_question_is_asked_again(pair, peer):
    key = pair.create()
    wait_until(lambda: len(peer.messages) >= 2, "it is asked twice")
    assert {json.loads(message.payload)["transaction_id"] for message in peer.messages} == {str(key)}


def test_a_fresh_online_asks_again_at_once_and_a_replayed_one_does_not(start, broker, tmp_path):
    with Peer(broker, QUESTIONS) as peer:
        peer.publish(f"{STATUSES}validator-1", "online", retain=True)
        pair = start(broker.port, validation_timeout=86400, validation_retry=30)
        pair.ready()
        wait_until(lambda: pair.listener.equipment == {"validator-1": "online"}, "the replayed status")
        pair.create()
        wait_until(lambda: peer.messages, "the question")
        peer.publish(f"{STATUSES}validator-1", "offline", retain=True)
        wait_until(lambda: pair.listener.equipment == {"validator-1": "offline"}, "the news")
        assert len(peer.messages) == 1
        peer.publish(f"{STATUSES}validator-1", "online", retain=True)
        wait_until(lambda: len(peer.messages) == 2, "the question again")


def test_it_starts_without_a_broker_and_asks_when_there_is_one(start, broker):
    broker.stop()
    pair = start(broker.port)
    pair.says(f"127.0.0.1:{broker.port}", "cannot be reached", "refused")
    key = pair.create()
    assert pair.asked == 0
    broker.start()
    with Peer(broker, QUESTIONS) as peer:
        wait_until(lambda: peer.messages, "it is asked")
        peer.publish(VERDICTS, verdict(key))
        pair.settled(key)


def test_a_broker_that_restarts_is_found_again(pair, broker):
    broker.kill()
    pair.says("was lost")
    key = pair.create()
    broker.start()
    pair.ready()
    with Peer(broker) as peer:
        peer.publish(VERDICTS, verdict(key))
    pair.settled(key)


def test_equipment_is_forgotten_when_a_new_connection_does_not_tell_of_it(pair, broker):
    with Peer(broker) as peer:
        peer.publish(f"{STATUSES}validator-1", "online", retain=True)
        wait_until(lambda: pair.listener.equipment == {"validator-1": "online"}, "its status")
    broker.kill()
    pair.says("was lost")
    broker.start()  # it has lost what it retained
    pair.ready()
    assert pair.listener.equipment == {}


def test_a_broker_that_stops_answering_is_noticed(pair, broker):
    broker.send(signal.SIGSTOP)
    pair.says("was lost")
    pair.says("does not answer")
    broker.send(signal.SIGCONT)
    pair.ready()


def test_a_refused_publish_is_said_in_words_and_mended_without_a_restart(start, broker, tmp_path):
    acl = tmp_path / "broker" / "mosquitto.acl"
    allowed = acl.read_text()
    acl.write_text(allowed.replace("topic write EQUIPMENT/VALIDATION\n", ""))
    broker.send(signal.SIGHUP)
    pair = start(broker.port)
    pair.ready()
    keys = [pair.create() for _ in range(3)]
    pair.says("refuses what is published on EQUIPMENT/VALIDATION", "Not authorized")
    # Each refusal costs the connection, and with the next one it tries again.
    asked = pair.asked
    wait_until(lambda: pair.asked > asked + 1, "it tries again")
    pair.says("refuses what is published on EQUIPMENT/VALIDATION", "Not authorized")
    acl.write_text(allowed)
    broker.send(signal.SIGHUP)
    with Peer(broker, QUESTIONS) as peer:
        pair.ready()
        wait_until(
            lambda: (
                {json.loads(m.payload)["transaction_id"] for m in peer.messages}
                == {str(key) for key in keys}
            ),
            "all are asked",
        )


def test_two_listeners_do_not_disconnect_each_other(pair, broker):
    with Listener(pair.settings, pair.ledger.queue.put, pair.store.clock) as other:
        wait_until(lambda: not other.problem, "the other is ready")
        key = pair.create()
        with Peer(broker) as peer:
            peer.publish(VERDICTS, verdict(key))
        pair.settled(key)
        assert not other.problem
        assert not pair.listener.problem
    assert "already connected" not in broker.said()


def test_a_listener_whose_thread_died_is_not_alive(pair):
    assert pair.listener.alive
    pair.listener._client.disconnect()
    wait_until(lambda: not pair.listener.alive, "the thread has ended")


def test_stopping_does_not_wait_for_a_broker_that_hangs(pair, broker):
    os.kill(broker.pid, signal.SIGSTOP)
    pair.create()
    pair.stop()
    assert pair.listener.alive  # this end is no accident
